"""The newest version of each item, with a count of the versions it superseded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import apache_beam as beam

# The newest version so far, and the number of older ones by what they are counted as.
Kept = tuple[Any, Counter[str]]


class KeepNewest(beam.CombineFn):
    """Versions of one item → (the newest, the number of older ones by what they are counted as).

    Args:
        rank: sort key of a version; the largest is the newest. It must be unique, or a rerun could keep a different version.
        counted_as: the name under which an older version is counted.
    """

    def __init__(self, rank: Callable[[Any], Any], counted_as: Callable[[Any], str]) -> None:
        self._rank = rank
        self._counted_as = counted_as

    def create_accumulator(self) -> Kept:
        return None, Counter()

    def add_input(self, kept: Kept, version: Any) -> Kept:
        return self.merge_accumulators([kept, (version, Counter())])

    def merge_accumulators(self, accumulators: Iterable[Kept]) -> Kept:
        best: Any = None
        older: Counter[str] = Counter()
        for version, counted in accumulators:
            older += counted
            if version is None or best is None:
                best = version if best is None else best
                continue
            best, replaced = (version, best) if self._rank(version) > self._rank(best) else (best, version)
            older[self._counted_as(replaced)] += 1
        return best, older

    def extract_output(self, kept: Kept) -> Kept:
        return kept
