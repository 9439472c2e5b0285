"""What is kept of searches and of what buyers did with their results, for the evaluation.

A search is kept with its words and its photos, made small and without metadata, so without the place where they were taken.
Who asked is not kept. Nothing at all is kept of a search whose caller does not want it, or where LENS_SEARCH_LOG_DAYS is 0.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastapi import Request
from PIL import Image

from listing_lens.lake.searches import photo_name, search_log
from listing_lens.lake.windows import Lake
from listing_lens.search.queries import Hit
from listing_lens.serving.batched_log import BatchedLog, File
from listing_lens.serving.listing_photos import as_jpeg
from listing_lens.serving.live_space import LiveSpace
from listing_lens.serving.wire import Event

# The longer side of a photo that is kept, in pixels: more than encoders look at.
_SIDE = 768


@dataclass(frozen=True)
class SearchLog:
    """Keeps searches and events.

    Attributes:
        log: their entries; None where nothing is kept.
        now: the clock.
    """

    log: BatchedLog | None
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    @classmethod
    def of(cls, lake: Lake, days: float, every_s: float) -> SearchLog:
        return cls(BatchedLog(search_log(lake), every_s) if days else None)

    @property
    def lost(self) -> int:
        """Searches that could not be kept, since too many waited for a lake that cannot be written to."""
        return 0 if self.log is None else self.log.lost

    def new_id(self, request: Request, wanted: bool) -> str | None:
        """An id for a search that may be kept; None if it may not.

        Browsers say by `Sec-GPC: 1` that their user does not want it (Global Privacy Control).
        """
        if self.log is None or not wanted or request.headers.get("sec-gpc") == "1":
            return None
        return new_id(self.now())

    async def keep(
        self,
        search_id: str,
        live: LiveSpace,
        hits: Sequence[Hit],
        asked: Mapping[str, Any],
        images: Sequence[Image.Image] = (),
    ) -> None:
        """Keep a search: what was asked for, its photos, and what was shown."""
        assert self.log is not None, "an id is given only where searches are kept"
        at = self.now()
        entry = {
            "kind": "search",
            "search_id": search_id,
            "at": at.isoformat(),
            "index": live.index.name,
            "space": live.index.card.space,
            "shown": [hit.item_id for hit in hits],
            **asked,
        }
        paths = [f"{self.log.log.folder}/{photo_name(search_id, number)}" for number in range(len(images))]
        photos = await asyncio.to_thread(lambda: [_as_small_jpeg(image) for image in images]) if images else []
        self.log.note({**entry, "photos": len(images)}, *map(File, paths, photos))

    async def photo(self, search_id: str) -> bytes | None:
        """The first photo of a search; None if it is not kept, or not any more."""
        if self.log is None:
            return None
        log = self.log.log
        try:
            path = f"{log.folder}/{photo_name(search_id)}"
            # A page may be opened again before the log is written.
            return self.log.waiting(path) or await asyncio.to_thread(log.lake.read_bytes, path)
        except (FileNotFoundError, ValueError, OverflowError):
            # The latter for an id whose time no calendar has.
            return None

    async def store_events(self, events: Sequence[Event]) -> int:
        """Keep events; they are in the lake when this returns. Returns how many were kept.

        Raises:
            UnavailableError: the lake cannot be written to.
        """
        if self.log is None:
            return 0
        at = self.now().isoformat()
        await self.log.store([{**event.model_dump(), "at": at} for event in events])
        return len(events)


def _as_small_jpeg(image: Image.Image) -> bytes:
    small = image.copy()
    small.thumbnail((_SIDE, _SIDE))
    return as_jpeg(small, quality=90)


def new_id(at: datetime) -> str:
    """32 hexadecimal digits: the time in milliseconds, and 80 random bits, so that whoever knows it was told it."""
    return f"{int(1000 * at.timestamp()):012x}{secrets.token_hex(10)}"
