"""Checked listings on their way into the lake, on disk: millions do not fit in memory."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from listing_lens.lake.records import Listing, Status
from listing_lens.lake.window import Window

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# Clustered by time: a window is one range, and a repeated version is found at once.
_TABLE = """
CREATE TABLE listings (
    updated_at INTEGER, item_id TEXT, title TEXT, category TEXT, price INTEGER, image_uri TEXT, status TEXT,
    created_at INTEGER, seller_id TEXT, product_id TEXT, PRIMARY KEY (updated_at, item_id)
) WITHOUT ROWID
"""


class Spool:
    """A scratch database in one file. Use it in a ``with`` block; the file is the caller's to remove."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        # Nothing here outlives the import: no journal, no flushing.
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute(_TABLE)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def add(self, listing: Listing) -> bool:
        """Keep a listing; False if this version of it, by ``updated_at``, is there already."""
        added = self._database.execute(
            "INSERT OR IGNORE INTO listings VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                _micros(listing.updated_at),
                listing.item_id,
                listing.title,
                json.dumps(listing.category),
                listing.price,
                listing.image_uri,
                listing.status,
                _micros(listing.created_at),
                listing.seller_id,
                listing.product_id,
            ),
        )
        return added.rowcount == 1

    def span(self) -> tuple[datetime, datetime] | None:
        """The first and the last ``updated_at``; None if there are no listings."""
        first, last = self._database.execute("SELECT min(updated_at), max(updated_at) FROM listings").fetchone()
        return None if first is None else (_moment(first), _moment(last))

    def within(self, window: Window) -> Iterator[Listing]:
        """The listings of a window, by time and id."""
        found = self._database.execute(
            "SELECT * FROM listings WHERE updated_at >= ? AND updated_at < ? ORDER BY updated_at, item_id",
            (_micros(window.start), _micros(window.end)),
        )
        for updated_at, item_id, title, category, price, image_uri, status, created_at, seller_id, product_id in found:
            yield Listing(
                item_id=item_id,
                title=title,
                category=tuple(json.loads(category)),
                price=price,
                image_uri=image_uri,
                status=Status(status),
                created_at=_moment(created_at),
                updated_at=_moment(updated_at),
                seller_id=seller_id,
                product_id=product_id,
            )


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _moment(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)
