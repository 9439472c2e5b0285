"""The log of listings, and what becomes of it: an index replays it, and the lake's windows are landed from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from listing_lens.errors import LensError
from listing_lens.images.source import resolve_uri
from listing_lens.indexing.events import LOG, TOLERANCE, listing_in, newest
from listing_lens.lake.log import Log, written_at
from listing_lens.lake.records import LISTING_SCHEMA, Listing, Refused, parse_listings, to_table
from listing_lens.lake.window import Window
from listing_lens.lake.windows import LISTINGS, Lake

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# After its end, a window is landed when every listing that belongs to it has been written: the latest of them comes that late,
# and writing takes time.
LANDS_AFTER = TOLERANCE + timedelta(minutes=1)
# How late a window may be landed and embedded.
_LATE = timedelta(days=1)


@dataclass(frozen=True)
class ListingLog:
    """The listings that were told of, as they came."""

    log: Log

    @classmethod
    def of(cls, lake: Lake) -> ListingLog:
        return cls(Log(lake, LOG))

    @property
    def lake(self) -> Lake:
        return self.log.lake

    def read(self, path: str) -> Iterator[Listing]:
        """The listings in a file of the log."""
        return map(listing_in, self.log.read(path))

    def not_landed(self, now: datetime) -> list[Listing]:
        """The newest version of each item in `files_not_landed`."""
        return newest(listing for path in self.files_not_landed(now) for listing in self.read(path))

    def files_not_landed(self, now: datetime) -> list[str]:
        """The files that were written since the last window landed, or up to a day before its end.

        Windows may land out of order, and be embedded later.
        """
        windows = self.lake.windows(LISTINGS)
        since = max((window.end - _LATE for window in windows), default=_EPOCH)
        return self.log.files(since, now + TOLERANCE)

    def land(self, window: Window, now: datetime) -> int:
        """Land a window of listings: those that changed in it, beside what an import has landed. Returns how many were told of.

        A queue may have kept a listing for longer than a window waits: it lands in the window in which it was written. So
        each lands once, however late it comes.

        Raises:
            LensError: it is too early, and some may be yet to come.
        """
        if now < window.end + LANDS_AFTER:
            raise LensError(f"listings of {window} may still come: land it from {window.end + LANDS_AFTER} on")
        rows = {(one.item_id, one.version): asdict(one) for one in self._told(window)}
        landed = self._landed(window)
        if landed is None or rows.keys() - landed.keys():
            # In one order, whatever the order of events was: the window is the same window.
            every = {**rows, **(landed or {})}
            table = to_table([every[key] for key in sorted(every)], LISTING_SCHEMA)
            self.lake.write_table(LISTINGS, window, table, now)
        return len(rows)

    def _told(self, window: Window) -> Iterator[Listing]:
        """The listings that belong to a window, as often as they were written."""
        for path in self.log.files(window.start - TOLERANCE, window.end + LANDS_AFTER):
            earliest = written_at(path) - TOLERANCE
            for listing in self.read(path):
                if window.start <= max(listing.updated_at, earliest) < window.end:
                    yield listing

    def _landed(self, window: Window) -> dict[tuple[str, int], dict[str, Any]] | None:
        """The rows that a window has already, with absolute addresses of their photos; None if it has not landed."""
        if window not in self.lake.windows(LISTINGS, window):
            return None
        root = self.lake.manifest(LISTINGS, window).image_root
        rows = {}
        for batch in self.lake.read(LISTINGS, [window]):
            for one in parse_listings(batch, window):
                if isinstance(one, Refused):
                    raise LensError(
                        f"{window} has a row that is no valid listing ({one.item_id!r}: {one.reason}), which an import has "
                        "landed: import it again without that row"
                    )
                absolute = replace(one, image_uri=resolve_uri(one.image_uri, root)) if one.image_uri else one
                rows[one.item_id, absolute.version] = asdict(absolute)
        return rows

    def forget(self, before: date) -> int:
        """Remove the log of days before a date, unless the lake has yet to land them. Returns the number of days."""
        landed = max((window.end for window in self.lake.windows(LISTINGS)), default=_EPOCH) - LANDS_AFTER
        return self.log.forget(min(before, landed.date()))
