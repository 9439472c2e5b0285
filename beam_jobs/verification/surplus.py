"""What the index holds and the lake does not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beam_jobs.verification.config import MOST_REPAIRED, Config
from listing_lens.lake.tables import hash_keys
from listing_lens.search.index import Scanned, SearchIndex


@dataclass(frozen=True)
class Surplus:
    """Searchable documents that the lake does not hold.

    Attributes:
        count: how many.
        ahead: how many more are newer than what is embedded: they came by another way, and the lake will follow.
        documents: some of those counted; all of them if they can be repaired.
    """

    count: int = 0
    ahead: int = 0
    documents: tuple[Scanned, ...] = ()


def find_surplus(config: Config, search_index: SearchIndex, findable: int) -> Surplus:
    """Compare what is searchable with the lake's newest items; an index that holds just those `findable` need not be read.

    Keeps a 64-bit hash per item of the lake in memory.
    """
    name = config.index.name
    search_index.finish_load(name)
    if search_index.counts(name)["searchable"] == findable:
        return Surplus()
    batches = search_index.scan_searchable(name)
    # Read after the scan's snapshot was taken: what is loaded is in the lake before it is in the index.
    known = np.unique(config.embeddings.items.key_hashes())
    count = ahead = 0
    listed: list[Scanned] = []
    for batch in batches:
        there = _is_in(hash_keys([one.item_id for one in batch]), known)
        others = [one for one, known_already in zip(batch, there, strict=True) if not known_already]
        surplus = [one for one in others if one.updated_at < config.embedded_until]
        count, ahead = count + len(surplus), ahead + len(others) - len(surplus)
        listed += surplus[: MOST_REPAIRED + 1 - len(listed)]
    return Surplus(count, ahead, tuple(listed))


def _is_in(hashes: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which hashes (n,) are among the increasing `known` (m,): unlike `np.isin`, it does not sort those again."""
    if not len(known):
        return np.zeros(len(hashes), bool)
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    found: NDArray[np.bool_] = known[places] == hashes
    return found
