"""What was told of a listing and cannot be used, kept with the reason in a log of its own: whoever told of it is not there to
be answered."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from listing_lens.indexing.events import Poison, entry_of
from listing_lens.lake.log import Entry, Log
from listing_lens.lake.windows import Lake

if TYPE_CHECKING:
    # It imports torch.
    from listing_lens.indexing.indexer import Unusable

logger = logging.getLogger(__name__)

# The log's name in the lake.
SET_ASIDE = "listings-set-aside"


@dataclass(frozen=True)
class SetAside:
    """The log of what cannot be used; `writer` names the process that writes to it."""

    log: Log
    writer: str

    @classmethod
    def of(cls, lake: Lake, writer: str) -> SetAside:
        return cls(Log(lake, SET_ASIDE), writer)

    def listings(self, unusable: Sequence[Unusable], now: datetime) -> None:
        """Keep listings that no index can hold."""
        self._append([{**entry_of(one.listing, now), "reason": one.reason} for one in unusable], now)
        for one in unusable:
            logger.warning("listing %s is set aside: %s", one.listing.item_id, one.reason)

    def events(self, poison: Sequence[Poison], now: datetime) -> None:
        """Keep events that are no listings."""
        self._append([{"at": now.isoformat(), "text": one.text, "reason": one.reason} for one in poison], now)
        for one in poison:
            logger.warning("an event is set aside: %s", one.reason)

    def _append(self, entries: Sequence[Entry], now: datetime) -> None:
        if entries:
            self.log.append(entries, now, self.writer)
