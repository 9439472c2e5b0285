"""Vectors that are spread like an encoder's embeddings of a catalog: in a cone, in clusters, with a decaying spectrum.

What decides how a vector index fares, of graphs and of quantisation alike, is how near the neighbours are beside everything
else, and in how many directions. So items lie about the centre of their kind; kinds are of unequal size; the variance falls
as a power of the axis's number, within a kind more slowly than between kinds; no coordinate is special; all share a part,
which gives two items that have nothing in common a cosine of 0.5. A projection to 128 of 768 axes keeps 0.85 of the variance.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_KINDS = 2000
# Shares of the squared length: of what all items share, of their kind, and of their own.
_SHARED, _OF_KIND, _OWN = 0.5, 0.3, 0.2
_DECAY_OF_KINDS, _DECAY_OF_ITEMS = 1.4, 1.0
_BATCH = 8192


def clustered(rows: int, dims: int, seed: int = 0) -> Iterator[NDArray[np.float32]]:
    """Unit vectors in batches (up to 8192, dims); all seeds draw from one distribution."""
    fixed, rng = np.random.default_rng(20260101), np.random.default_rng(seed)
    axes = np.linalg.qr(fixed.standard_normal((dims, dims)))[0].astype(np.float32)
    shared = np.sqrt(_SHARED, dtype=np.float32) * axes[-1]
    of_kinds, own = _deviations(dims, _DECAY_OF_KINDS, _OF_KIND), _deviations(dims, _DECAY_OF_ITEMS, _OWN)
    centres = (fixed.standard_normal((_KINDS, dims), dtype=np.float32) * of_kinds) @ axes + shared
    # As Zipf found of words, but for the few most frequent ones.
    share = 1 / (np.arange(_KINDS) + 20)
    for start in range(0, rows, _BATCH):
        count = min(_BATCH, rows - start)
        batch = np.matmul(rng.standard_normal((count, dims), dtype=np.float32) * own, axes, dtype=np.float32)
        batch += centres[rng.choice(_KINDS, count, p=share / share.sum())]
        batch /= np.linalg.norm(batch, axis=1, keepdims=True)
        yield batch


def _deviations(dims: int, decay: float, squares: float) -> NDArray[np.float32]:
    """Standard deviations (dims,) by axis, whose squares fall with a power of its number and have a given sum."""
    variances = np.arange(1, dims + 1) ** -decay
    deviations: NDArray[np.float32] = np.sqrt(squares * variances / variances.sum()).astype(np.float32)
    return deviations
