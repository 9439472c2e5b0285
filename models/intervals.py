"""Means over sessions with their uncertainty: bootstrap intervals, in which sessions of one product stay together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Of the bootstrap distribution, the middle 95 %.
_PERCENTILES = (2.5, 97.5)
_RESAMPLES = 2000
_SEED = 0


@dataclass(frozen=True)
class Interval:
    """A mean, and the bounds of its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def clusters_of(groups: Sequence[Sequence[str]]) -> NDArray[np.intp]:
    """The cluster of each of n sessions, (n,): sessions are of one if they share a group, directly or through others."""
    names = {name: number for number, name in enumerate(sorted({name for found in groups for name in found}))}
    pairs = np.array([(row, names[name]) for row, found in enumerate(groups) for name in found], np.intp).reshape(-1, 2)
    size = len(groups) + len(names)
    joined = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], len(groups) + pairs[:, 1])), shape=(size, size))
    _, labels = connected_components(joined, directed=False)
    _, clusters = np.unique(labels[: len(groups)], return_inverse=True)
    return clusters.astype(np.intp)


def bootstrap_mean(values: NDArray[np.float64], clusters: NDArray[np.intp]) -> Interval:
    """The mean of n values (n,), with the percentile interval over resampled clusters (n,); the same for the same values.

    A difference of paired values is estimated by giving the differences. A single cluster has an interval of no width, which
    says nothing: whoever reports it must ask for more.

    Raises:
        ValueError: there are no values.
    """
    if not len(values):
        raise ValueError("no values: their mean is undefined")
    sums, counts = np.bincount(clusters, values), np.bincount(clusters)
    rng = np.random.default_rng(_SEED)
    drawn = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), _RESAMPLES)
    low, high = np.percentile((drawn @ sums) / (drawn @ counts), _PERCENTILES)
    return Interval(float(values.mean()), float(low), float(high))
