"""Canaries: searches of the service's own that say, all the time, how much of what is there the index finds.

The queries are listings' own vectors. Each is searched twice, as a buyer would and with as many candidates as
Elasticsearch allows: what the first finds of the second's is the recall of the graph, as fragmented as it is just now.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from listing_lens.errors import LensError
from listing_lens.search.queries import MOST_CANDIDATES
from listing_lens.serving.index_reader import IndexReader
from listing_lens.serving.limits import Budget, RefusedError
from listing_lens.serving.live_space import Follower, LiveSpace
from listing_lens.serving.metrics import Metrics

logger = logging.getLogger(__name__)

_EVERY_S = 60.0
# One round takes some fifty milliseconds of the cluster.
_QUERIES = 5
_K = 10
_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Canaries:
    """Measures the recall of the live index, and tells the metrics."""

    reader: IndexReader
    follower: Follower
    metrics: Metrics
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def run(self) -> None:
        """Measure at intervals until cancelled."""
        while True:
            await self.sleep(_EVERY_S)
            if live := self.follower.live:
                try:
                    await self.measure(live)
                except (RefusedError, LensError) as err:
                    # The next one may find a quieter moment; buyers come first.
                    logger.info("no canaries just now: %s", err)

    async def measure(self, live: LiveSpace) -> float | None:
        """The mean recall@10 of some of the newest listings, which are the hardest to find: their segments are small.

        Returns None for an index without searchable listings.

        Raises:
            RefusedError: the cluster is busy or away.
        """
        budget = Budget.of(_PATIENCE_S)
        recalls = []
        for hit in await self.reader.newest(live.index, _QUERIES, budget):
            stored = await self.reader.stored(live.index, hit.item_id, budget)
            if stored and stored.vector is not None:
                recalls.append(await self._recall(live, stored.vector, budget))
        if not recalls:
            return None
        recall = sum(recalls) / len(recalls)
        self.metrics.canary_recall.set(recall)
        return recall

    async def _recall(self, live: LiveSpace, vector: NDArray[np.float32], budget: Budget) -> float:
        wide = await self.reader.nearest(live.index, vector, _K, budget, candidates=MOST_CANDIDATES)
        usual = {hit.item_id for hit in await self.reader.nearest(live.index, vector, _K, budget)}
        return len([hit for hit in wide if hit.item_id in usual]) / max(1, len(wide))
