"""How good a projection is, and how far from another: recall against exact search, principal angles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import subspace_angles

from models.errors import LensError
from models.projection import Projection

# Queries per batch: against a million items, the scores of 64 and their order take 770 MB.
_QUERIES_AT_A_TIME = 64
# Scores that differ by a smaller share count as equal: copies of one photo are all equally near.
_TIED = 1e-6


def nearest(
    vectors: NDArray[np.float32],
    queries: NDArray[np.integer],
    k: int,
    asking: NDArray[np.float32] | None = None,
) -> NDArray[np.int64]:
    """Exact search: for each item whose index is in `queries` (q,), the k nearest of vectors (n, d), itself excluded.

    Nearest first, by inner product. Returns their indexes, (q, k).

    Args:
        vectors: of all items.
        queries: indexes of the items that are searched for.
        k: how many are found.
        asking: the vectors (n, d) by which items are searched for, if they are others than those that are found.

    Raises:
        LensError: there are fewer than k others.
    """
    if not 0 < k < len(vectors):
        raise LensError(f"among {len(vectors)} items none has {k} others: compare more items, or look for fewer")
    asking = vectors if asking is None else asking
    found = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), _QUERIES_AT_A_TIME):
        some = queries[start : start + _QUERIES_AT_A_TIME]
        distances = asking[some] @ vectors.T
        np.negative(distances, out=distances)
        distances[np.arange(len(some)), some] = np.inf
        near = np.argpartition(distances, k - 1, axis=1)[:, :k]
        order = np.argsort(np.take_along_axis(distances, near, axis=1), axis=1)
        found[start : start + len(some)] = np.take_along_axis(near, order, axis=1)
    return found


def scores(vectors: NDArray[np.float32], queries: NDArray[np.integer], found: NDArray[np.int64]) -> NDArray[np.float32]:
    """Inner products of the vectors (n, d) with indexes `queries` (q,) and of those `found` for each (q, k). Returns (q, k)."""
    return np.stack([vectors[near] @ vectors[query] for query, near in zip(queries, found, strict=True)])


def neighbour_recall(found: NDArray[np.float32], exact: NDArray[np.float32], k: int) -> NDArray[np.float64]:
    """For each query, the share of the k found that are as near as the k nearest.

    By score rather than by index, so that equal items are interchangeable.

    Args:
        found: `scores` of the full embeddings, (q, at least k), in the order in which they were found.
        exact: the same for exact search, nearest first.

    Returns:
        (q,)
    """
    last = exact[:, k - 1 : k]
    share: NDArray[np.float64] = (found[:, :k] >= last - _TIED * np.abs(last)).mean(axis=1)
    return share


def principal_angles(one: Projection, other: Projection) -> NDArray[np.float64]:
    """The angles between the subspaces that two projections keep, in degrees, largest first (Björck and Golub 1973).

    As many angles as the smaller of the two has dimensions.
    """
    angles: NDArray[np.float64] = np.degrees(subspace_angles(one.axes, other.axes))
    return angles


def variance_held(projection: Projection, other: Projection) -> float:
    """The share of a projection's kept variance that lies within the subspace of another."""
    basis = np.linalg.qr(other.axes)[0]
    within = np.square(basis.T @ projection.axes).sum(axis=0)
    kept = projection.spectrum[: projection.dims]
    return float(within @ kept / kept.sum())
