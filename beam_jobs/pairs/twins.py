"""Twins: pairs whose photos look alike, within a split or across it."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from operator import attrgetter

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import TaggedOutput

from beam_jobs.pairs.elements import HashedPair, SampledListing, StoredPhoto
from beam_jobs.pairs.rules import Rules
from models.pairs.perceptual_hash import bands, near_before


def hashed_pair(pictured: tuple[SampledListing, StoredPhoto], rules: Rules) -> HashedPair:
    """The fields of a pair that are needed to find its twins."""
    sampled, photo = pictured
    listing = sampled.listing
    return HashedPair(listing.item_id, sampled.rank, rules.split(listing), rules.group(listing), photo.image_hash)


class FindTwins(beam.PTransform):
    """`HashedPair`s → (item_id, reason) of those to be dropped.

    A pair is a near-duplicate if at least `most` pairs of lower rank look like it. It is a twin across the split if a pair of
    lower rank on the other side of the split looks like it. Only lower ranks count, whether they are dropped themselves or
    not, so the result is independent of processing order, and a larger sample drops nothing that a smaller one keeps.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def expand(self, hashed: beam.PCollection[HashedPair]) -> beam.PCollection[tuple[str, str]]:
        alike = (
            hashed
            | "By hash" >> beam.WithKeys(lambda pair: pair.image_hash)
            | "Same hash" >> beam.GroupByKey()
            | "Keep the first" >> beam.ParDo(KeepFirstOfHash(self._most)).with_outputs("dropped", main="firsts")
        )
        near = (
            alike.firsts
            | "By band" >> beam.FlatMap(lambda pair: [(band, pair) for band in bands(pair.image_hash)])
            | "Same band" >> beam.GroupByKey()
            | "Compare" >> beam.FlatMap(_near, most=self._most)
            | "By item" >> beam.GroupByKey()
            | "Decide" >> beam.FlatMap(_decide, most=self._most)
        )
        return (alike.dropped, near) | "Dropped" >> beam.Flatten()


class KeepFirstOfHash(beam.DoFn):
    """Pairs with the same hash → the first `most`, which suffice to find the twins of others; `dropped`: the rest."""

    def __init__(self, most: int) -> None:
        self._most = most

    def process(self, group: tuple[int, Iterable[HashedPair]]) -> Iterator[HashedPair | TaggedOutput]:
        _, pairs = group
        firsts = heapq.nsmallest(self._most, pairs, key=attrgetter("rank"))
        yield from firsts
        for pair in pairs:
            if pair.rank > firsts[-1].rank:
                yield TaggedOutput("dropped", (pair.item_id, "near_duplicate"))


def _near(group: tuple[int, Iterable[HashedPair]], most: int) -> Iterator[tuple[str, tuple[set[str], bool]]]:
    """The pairs of a band → (item_id, (up to `most` similar pairs of lower rank, whether any is on the other side))."""
    pairs = sorted(group[1], key=attrgetter("rank"))
    hashes = np.array([pair.image_hash for pair in pairs], np.uint64)
    for pair, places in zip(pairs, near_before(hashes), strict=True):
        if len(places):
            earlier = [pairs[place] for place in places]
            across = any(other.split != pair.split for other in earlier)
            yield pair.item_id, ({other.item_id for other in earlier[:most]}, across)


def _decide(group: tuple[str, Iterable[tuple[set[str], bool]]], most: int) -> Iterator[tuple[str, str]]:
    item_id, found = group[0], list(group[1])
    if len(set().union(*(ids for ids, _ in found))) >= most:
        yield item_id, "near_duplicate"
    elif any(across for _, across in found):
        yield item_id, "twin_across_split"
