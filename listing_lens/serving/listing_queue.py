"""Listings that were told to the service, on their way into the indexes: the newest version of each waits in memory.

They are in the log before the caller is answered, so nothing is lost with the process: the next one replays the log.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from listing_lens.indexing.events import LOG, entry_of
from listing_lens.indexing.indexer import Indexed, Indexer
from listing_lens.indexing.listing_log import ListingLog
from listing_lens.indexing.set_aside import SetAside
from listing_lens.lake.log import Log
from listing_lens.lake.records import Listing, by_version
from listing_lens.lake.windows import Lake
from listing_lens.serving.batched_log import BatchedLog
from listing_lens.serving.limits import BusyError
from listing_lens.serving.metrics import Metrics
from listing_lens.settings import Settings

logger = logging.getLogger(__name__)

# How often the log is written, in seconds: what a caller waits for.
_LOG_EVERY_S = 0.1
_MOST_WAITING = 5000
# Listings that are embedded and written together: an event waits for those before it in its batch.
_TOGETHER = 16
# Seconds before another attempt; they double.
_SHORTEST_S, _LONGEST_S = 0.5, 30.0
_SECONDS_PER_LISTING = 0.1


@dataclass(frozen=True)
class _Waiting:
    listing: Listing
    since: float


class ListingQueue:
    """Takes listings, and brings them into the indexes one batch after the other.

    Attributes:
        problem: why none gets through just now, as a sentence; None if they do.
    """

    def __init__(
        self,
        lake: Lake,
        connect: Callable[[], Indexer],
        metrics: Metrics,
        *,
        most_waiting: int = _MOST_WAITING,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.log = BatchedLog(Log(lake, LOG), _LOG_EVERY_S, now=now, sleep=sleep)
        self.problem: str | None = None
        self._connect, self._metrics, self._most, self._now, self._sleep = connect, metrics, most_waiting, now, sleep
        self._set_aside = SetAside.of(lake, self.log.writer)
        self._indexer: Indexer | None = None
        self._waiting: dict[str, _Waiting] = {}
        self._there = asyncio.Event()

    @classmethod
    def of(cls, settings: Settings, metrics: Metrics) -> ListingQueue:
        return cls(Lake(settings.lake), lambda: Indexer.of(settings), metrics)

    @property
    def waiting(self) -> int:
        """Listings that are not in the indexes yet."""
        return len(self._waiting)

    async def tell(self, listing: Listing) -> None:
        """Take a listing; it is in the log when this returns, and in the indexes soon afterwards.

        Raises:
            BusyError: too many wait; nothing is kept of this one.
            UnavailableError: the log cannot be written to.
        """
        if len(self._waiting) >= self._most:
            raise BusyError(
                f"{len(self._waiting)} listings wait to be indexed, which is as many as may",
                _SECONDS_PER_LISTING * len(self._waiting),
            )
        await self.log.store([entry_of(listing, self._now())])
        self._add([listing])

    async def run(self) -> None:
        """Bring listings into the indexes until cancelled: first those that an earlier process may have left."""
        pause, step = _SHORTEST_S, self._replay
        while True:
            try:
                await step()
            except Exception as err:  # noqa: BLE001
                # Whatever it is, they are in the log, and wait.
                self._note(str(err) or repr(err))
                await self._sleep(pause)
                pause = min(2 * pause, _LONGEST_S)
            else:
                self._note(None)
                pause, step = _SHORTEST_S, self._index_next

    async def _replay(self) -> None:
        log = ListingLog(self.log.log)
        self._add(await asyncio.to_thread(log.not_landed, self._now()))

    def _add(self, listings: Sequence[Listing]) -> None:
        for listing in listings:
            waiting = self._waiting.get(listing.item_id)
            if waiting is None or by_version(waiting.listing) < by_version(listing):
                self._waiting[listing.item_id] = _Waiting(listing, time.monotonic())
        if self._waiting:
            self._there.set()

    async def _index_next(self) -> None:
        await self._there.wait()
        batch = list(islice(self._waiting.values(), _TOGETHER))
        result = await asyncio.to_thread(self._write, [waiting.listing for waiting in batch])
        for waiting in batch:
            # A newer version may have come meanwhile.
            if self._waiting.get(waiting.listing.item_id) is waiting:
                del self._waiting[waiting.listing.item_id]
            self._metrics.indexing_seconds.observe(time.monotonic() - waiting.since)
        self._metrics.set_aside.inc(len(result.unusable))
        if not self._waiting:
            self._there.clear()

    def _write(self, listings: Sequence[Listing]) -> Indexed:
        if self._indexer is None:
            self._indexer = self._connect()
        result = self._indexer.index(listings)
        self._set_aside.listings(result.unusable, self._now())
        return result

    def _note(self, problem: str | None) -> None:
        if problem and problem != self.problem:
            logger.warning("listings wait: %s", problem)
        self.problem = problem
