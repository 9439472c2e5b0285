"""Searching the index, as readers do: for the sampled items by their own vectors, and with their photos."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from beam_jobs.verification.config import EXAMPLES, SHOWN, Config
from beam_jobs.verification.sample import Sample, draw_sample
from listing_lens import progress
from listing_lens.errors import LensError
from listing_lens.search.index import SearchIndex
from listing_lens.search.queries import Hit
from listing_lens.search.verification import Check
from listing_lens.serving.listing_search import search_by_image
from models.images import ImageError, decode_image

logger = logging.getLogger(__name__)

# Two photos whose vectors have a larger cosine are copies: to a buyer, their listings are equally near.
_COPIES = 1 - 1e-5
_LOOKED_UP = 500


@dataclass(frozen=True)
class Probed:
    """What searches of the index have found.

    Attributes:
        sampled: the ids of the items whose vectors are compared.
        query_ids, queries: the items whose neighbours were searched for, (q,), and their vectors, (q, dims).
        found: the ids of the neighbours found for each of them, nearest first, at most `SHOWN`; itself is not among them.
        checks: self_retrieval and canaries.
    """

    sampled: frozenset[str]
    query_ids: list[str]
    queries: NDArray[np.float32]
    found: list[list[str]]
    checks: tuple[Check, ...]

    @cached_property
    def query_of(self) -> dict[str, int]:
        """The place of each query."""
        return {item_id: place for place, item_id in enumerate(self.query_ids)}

    @cached_property
    def places_of(self) -> dict[str, list[tuple[int, int]]]:
        """(query, rank) of each id in `found`."""
        places: dict[str, list[tuple[int, int]]] = {}
        for query, neighbours in enumerate(self.found):
            for rank, item_id in enumerate(neighbours):
                places.setdefault(item_id, []).append((query, rank))
        return places


def probe(config: Config) -> Probed:
    """Draw the sample, and search for it."""
    sample, limits = draw_sample(config), config.limits
    search_index = config.cluster.connect()
    try:
        comparable = _comparable(sample, config, search_index)
        # One more than is shown: an item is its own nearest neighbour.
        hits = [_search(vector, config, search_index) for vector in sample.vectors]
        found = [
            [hit.item_id for hit in some if hit.item_id != item_id][:SHOWN]
            for item_id, some in zip(sample.item_ids, hits, strict=True)
        ]
        return Probed(
            sampled=frozenset(sample.item_ids[: limits.sample]),
            query_ids=sample.item_ids[: limits.queries],
            queries=sample.vectors[: limits.queries],
            found=found[: limits.queries],
            checks=(
                _self_retrieval(sample, [at for at in comparable if at < limits.sample], hits, config, search_index),
                _canaries(sample, comparable[: limits.canaries], config, search_index),
            ),
        )
    finally:
        search_index.client.close()


def _search(vector: NDArray[np.float32], config: Config, search_index: SearchIndex) -> list[Hit]:
    hits = search_index.search(config.index, vector, SHOWN + 1)
    progress.advance("searched", 1, config.limits.drawn)
    return hits


def _comparable(sample: Sample, config: Config, search_index: SearchIndex) -> list[int]:
    """The places of those of the sample that the index should hold as they are: it did not refuse them, nor has newer ones."""
    held: dict[str, int] = {}
    for start in range(0, len(sample.item_ids), _LOOKED_UP):
        some = sample.item_ids[start : start + _LOOKED_UP]
        held |= {item_id: one.version for item_id, one in search_index.documents(config.index.name, some, []).items()}
    pairs = enumerate(zip(sample.item_ids, sample.versions, strict=True))
    return [
        at
        for at, (item_id, version) in pairs
        if (item_id, version) not in config.refused and held.get(item_id, version) <= version
    ]


def _self_retrieval(
    sample: Sample, places: Sequence[int], hits: Sequence[list[Hit]], config: Config, search_index: SearchIndex
) -> Check:
    lost = [
        sample.item_ids[at]
        for at in places
        if not _is_among(sample.item_ids[at], hits[at][:SHOWN], config, search_index)
    ]
    return _share_found("self_retrieval", lost, len(places), config, "items", "their own vectors")


def _is_among(item_id: str, hits: Sequence[Hit], config: Config, search_index: SearchIndex) -> bool:
    """Whether an item is among the hits, or a copy of it: a listing with the same vector, which is as good."""
    shown = [hit.item_id for hit in hits]
    if item_id in shown:
        return True
    held = search_index.vectors(config.index.name, [item_id, *shown])
    vectors = {name: vector for name, (_, vector) in held.items() if vector is not None}
    own = vectors.pop(item_id, None)
    return own is not None and any(float(other @ own) >= _COPIES for other in vectors.values())


def _canaries(sample: Sample, places: Sequence[int], config: Config, search_index: SearchIndex) -> Check:
    if not config.limits.canaries:
        return Check(name="canaries", passed=None, says="left out: LENS_VERIFY_CANARIES is 0")
    lost: list[str] = []
    unreadable: list[str] = []
    for at in places:
        try:
            image = decode_image(config.images.read(sample.image_uris[at]), config.images.limits)
            hits = search_by_image(
                image,
                SHOWN,
                config.index,
                search_index=search_index,
                lake=config.embeddings.lake,
                runtime=config.runtime,
            )
        except ImageError as err:
            unreadable.append(f"{sample.item_ids[at]}: {err}")
            continue
        except LensError as err:
            # Readers, too, would search in vain.
            return Check(name="canaries", passed=False, says=f"no photo can be searched with: {err}")
        if not _is_among(sample.item_ids[at], hits, config, search_index):
            lost.append(sample.item_ids[at])
    left_out = f"; {len(unreadable)} photos cannot be read now, e.g. {unreadable[0]}" if unreadable else ""
    return _share_found(
        "canaries", lost, len(places) - len(unreadable), config, "listings", "their photos", left_out=left_out
    )


def _share_found(
    name: str, lost: list[str], of: int, config: Config, what: str, by: str, *, left_out: str = ""
) -> Check:
    if not of:
        return Check(name=name, passed=None, says=f"left out: there are no {what} to find by {by}{left_out}")
    share, least = (of - len(lost)) / of, config.limits.least_found
    says = f"{of - len(lost):,} of {of:,} {what} are found by {by}, among the first {SHOWN}{left_out}"
    examples = tuple(f"{item_id} is not found" for item_id in lost[:EXAMPLES])
    return Check(name=name, passed=share >= least, says=says, measured=share, threshold=least, examples=examples)
