"""Sampling by a hash of the items' ids: a sample made again is the same, and a larger one contains the smaller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

NUMBER_BITS = 64
_BIN_BITS = 16


def sample_number(salt: str, item_id: str) -> int:
    """An item's sampling number: 64 bits, uniform, the same in every process. The lowest are sampled first."""
    return int.from_bytes(blake2b(f"{salt}\0{item_id}".encode(), digest_size=NUMBER_BITS // 8).digest())


def bin_of(number: int) -> int:
    """The bin of a sampling number, increasing with it. Items are counted by bin, so that no process has to hold all numbers.

    A bin holds all numbers of the same bit length with the same 16 leading bits, as in a floating-point number. So the first
    n items lie in bins of at most about n / 32,768 items: mostly one each if n is a few thousand. And each doubling of the
    items beyond 65,536 adds at most 32,768 bins.
    """
    dropped = max(0, number.bit_length() - _BIN_BITS)
    return dropped << _BIN_BITS | number >> dropped


@dataclass(frozen=True)
class SampledBins:
    """The sampled bins of a stratum, increasing, (n,) int64, and the cumulative number of items, (n,) int64."""

    bins: NDArray[np.int64]
    reached: NDArray[np.int64]

    @property
    def total(self) -> int:
        """How many items are sampled."""
        return int(self.reached[-1]) if len(self.reached) else 0

    def turn(self, number: int) -> int | None:
        """The smallest quota at which the item with this number is sampled; None if it is not sampled.

        Ordered by turn, and by number within a turn, a sample starts with every smaller sample.
        """
        wanted = bin_of(number)
        place = int(np.searchsorted(self.bins, wanted))
        return int(self.reached[place]) if place < len(self.bins) and self.bins[place] == wanted else None


def lowest_bins(counts: Mapping[int, int], quota: int) -> SampledBins:
    """The lowest bins that together hold at most `quota` items: exactly that many, or fewer by less than one bin.

    Args:
        counts: how many items of a stratum each bin holds.
        quota: how many to sample at most.
    """
    bins = np.array(sorted(counts), np.int64)
    reached = np.cumsum(np.array([counts[place] for place in bins.tolist()], np.int64))
    taken = int(np.searchsorted(reached, quota, side="right"))
    return SampledBins(bins[:taken], reached[:taken])


def water_fill(counts: Sequence[int], wanted: int) -> int:
    """The largest quota q with Σ min(count, q) ≤ wanted; the largest count when all of them fit.

    Strata with fewer items than the quota contribute all of them; the others share the rest evenly.
    """
    left, strata = wanted, len(counts)
    for count in sorted(counts):
        if count * strata > left:
            return left // strata
        left -= count
        strata -= 1
    return max(counts, default=0)
