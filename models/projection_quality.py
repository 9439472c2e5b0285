"""How good a projection is, and how far it is from another: recall against exact search, principal angles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import subspace_angles

from models.errors import LensError
from models.projection import Projection

# Queries that are scored together: against a million items, the scores of 64 and their order take 770 MB.
_QUERIES_AT_A_TIME = 64
# Scores that differ by a smaller share are equal: of copies of one photo, none is nearer than the others.
_TIED = 1e-6


def nearest(vectors: NDArray[np.float32], queries: NDArray[np.integer], k: int) -> NDArray[np.int64]:
    """Exact search: the k nearest of vectors (n, d) to each of those numbered by `queries` (q,), itself left out.

    Nearest first, by inner product. Returns their numbers, (q, k).

    Raises:
        LensError: there are not as many others.
    """
    if not 0 < k < len(vectors):
        raise LensError(f"among {len(vectors)} items none has {k} others: compare more items, or look for fewer")
    found = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), _QUERIES_AT_A_TIME):
        some = queries[start : start + _QUERIES_AT_A_TIME]
        distances = vectors[some] @ vectors.T
        np.negative(distances, out=distances)
        distances[np.arange(len(some)), some] = np.inf
        near = np.argpartition(distances, k - 1, axis=1)[:, :k]
        order = np.argsort(np.take_along_axis(distances, near, axis=1), axis=1)
        found[start : start + len(some)] = np.take_along_axis(near, order, axis=1)
    return found


def scores(vectors: NDArray[np.float32], queries: NDArray[np.integer], found: NDArray[np.int64]) -> NDArray[np.float32]:
    """Inner products of vectors (n, d) numbered by `queries` (q,) and by what was `found` for each (q, k). Returns (q, k)."""
    return np.stack([vectors[near] @ vectors[query] for query, near in zip(queries, found, strict=True)])


def neighbour_recall(found: NDArray[np.float32], exact: NDArray[np.float32], k: int) -> NDArray[np.float64]:
    """Which share of the k that were found for each query is as near to it as the k nearest.

    By nearness rather than by number, so that any of several equal items is as good as the others.

    Args:
        found: `scores` by the whole embeddings, (q, at least k), in the order in which they were found.
        exact: those of exact search, nearest first.

    Returns:
        (q,)
    """
    last = exact[:, k - 1 : k]
    share: NDArray[np.float64] = (found[:, :k] >= last - _TIED * np.abs(last)).mean(axis=1)
    return share


def principal_angles(one: Projection, other: Projection) -> NDArray[np.float64]:
    """The angles between the subspaces that two projections keep, in degrees, largest first (Björck and Golub 1973).

    As many as the fewer of their dimensions.
    """
    angles: NDArray[np.float64] = np.degrees(subspace_angles(one.axes, other.axes))
    return angles


def variance_held(projection: Projection, other: Projection) -> float:
    """Which share of the variance that a projection keeps lies within the subspace of another one."""
    basis = np.linalg.qr(other.axes)[0]
    within = np.square(basis.T @ projection.axes).sum(axis=0)
    kept = projection.spectrum[: projection.dims]
    return float(within @ kept / kept.sum())
