"""Dead letters of an encoder: listings that could not be embedded, why, and when they are retried.

A letter belongs to the newest version of an item that failed. It is removed when that version or a later one is embedded, and
replaced when a later one fails. Transient failures (a server that did not answer) are retried with exponential backoff, up to
`MOST_ATTEMPTS`; others are only retried on request.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from hashlib import blake2b

import pyarrow as pa

from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.records import TIMESTAMP, Listing, Refused, Status
from listing_lens.lake.tables import Table
from listing_lens.lake.window import Window

# Attempts at a transient failure, the first included: the pauses are 15 minutes, 30 minutes, an hour …; about 32 hours in all.
MOST_ATTEMPTS = 8
_FIRST_PAUSE = timedelta(minutes=15)

SCHEMA = pa.schema(
    [
        # The item's id; for an invalid row, a hash of the row.
        pa.field("key", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        # `Listing.version`; 0 for an invalid row.
        pa.field("version", pa.int64(), nullable=False),
        pa.field("updated_at", TIMESTAMP),
        pa.field("image_uri", pa.string()),
        pa.field("window", pa.string(), nullable=False),
        # `read`: the row is invalid; `fetch` or `decode`: so failed the photo; `encode`: the embedding is not finite.
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("transient", pa.bool_(), nullable=False),
        pa.field("attempts", pa.int64(), nullable=False),
        pa.field("failed_at", TIMESTAMP, nullable=False),
        # JSON: the listing, for a retry.
        pa.field("listing", pa.string()),
    ]
)


@dataclass(frozen=True)
class Letter:
    """A listing that could not be embedded; `listing` is None when its row is invalid."""

    key: str
    item_id: str
    window: Window
    stage: str
    reason: str
    transient: bool
    attempts: int
    failed_at: datetime
    listing: Listing | None

    @classmethod
    def of_listing(
        cls, listing: Listing, window: Window, stage: str, reason: str, *, transient: bool, attempts: int, now: datetime
    ) -> Letter:
        """The letter of a listing whose photo could not be embedded."""
        return cls(listing.item_id, listing.item_id, window, stage, reason, transient, attempts, now, listing)

    @classmethod
    def of_refused(cls, refused: Refused, window: Window, now: datetime) -> Letter:
        """The letter of an invalid row in a landed window."""
        digest = blake2b(f"{window.name} {refused.row}".encode(), digest_size=8).hexdigest()
        return cls(f"invalid row {digest}", refused.item_id, window, "read", refused.reason, False, 1, now, None)

    @property
    def version(self) -> int:
        return self.listing.version if self.listing else 0

    @property
    def due_at(self) -> datetime | None:
        """When the next attempt may be made; None if there will be none unless somebody asks."""
        if not self.transient or self.attempts >= MOST_ATTEMPTS:
            return None
        pause: timedelta = _FIRST_PAUSE * 2 ** (self.attempts - 1)
        return self.failed_at + pause

    def is_due(self, now: datetime) -> bool:
        """Whether the failure is transient, attempts are left, and the pause is over."""
        return self.due_at is not None and now >= self.due_at


@dataclass(frozen=True)
class DeadLetters:
    """The dead letters of an encoder."""

    embeddings: Embeddings

    @property
    def table(self) -> Table:
        return self.embeddings.dead_letters

    def letters(self, item_id: str | None = None) -> Iterator[Letter]:
        """Every letter; or those of one item."""
        narrowed = None if item_id is None else "item_id = '{}'".format(item_id.replace("'", "''"))
        yield from map(_letter_of, self.table.rows(filter=narrowed))

    def to_try(self, now: datetime, *, every: bool = False) -> list[Letter]:
        """The letters of listings that are due for a retry; or all of them, whatever their reason and last attempt."""
        return [letter for letter in self.letters() if letter.listing and (every or letter.is_due(now))]

    def add(self, letters: Iterable[Letter]) -> None:
        """Add letters; for each item, the letter of the newest version stays, and the last one for that version."""
        rows = {letter.key: letter for letter in sorted(letters, key=lambda letter: letter.version)}
        if rows:
            batch = pa.RecordBatch.from_pylist([_row_of(letter) for letter in rows.values()], schema=SCHEMA)
            self.table.merge(SCHEMA, [batch], newer="source.version >= target.version")

    def forget_refused(self, windows: Iterable[Window], since: datetime) -> None:
        """Remove letters of invalid rows from before `since`, in landed windows that no longer contain those rows."""
        held = self.table.rows(["key", "window", "failed_at"], filter="version = 0")
        names = {window.name for window in windows}
        self.table.delete([row["key"] for row in held if row["window"] in names and row["failed_at"] < since])

    def settle(self, versions: Mapping[str, int]) -> int:
        """Remove the letters of items whose version in `versions` is at least the letter's. Returns how many there were."""
        held = self.table.rows(["key", "item_id", "version"], filter="version > 0")
        settled = [row["key"] for row in held if versions.get(row["item_id"], -1) >= row["version"]]
        self.table.delete(settled)
        return len(settled)


def _row_of(letter: Letter) -> dict[str, object]:
    listing = letter.listing
    return {
        "key": letter.key,
        "item_id": letter.item_id,
        "version": letter.version,
        "updated_at": listing and listing.updated_at,
        "image_uri": listing and listing.image_uri,
        "window": letter.window.name,
        "stage": letter.stage,
        "reason": letter.reason,
        "transient": letter.transient,
        "attempts": letter.attempts,
        "failed_at": letter.failed_at,
        "listing": listing and json.dumps(asdict(listing), default=datetime.isoformat),
    }


def _letter_of(row: Mapping[str, object]) -> Letter:
    listing = None
    if row["listing"]:
        fields = json.loads(str(row["listing"]))
        fields |= {name: datetime.fromisoformat(fields[name]) for name in ("created_at", "updated_at")}
        listing = Listing(**fields | {"category": tuple(fields["category"]), "status": Status(fields["status"])})
    return Letter(
        key=str(row["key"]),
        item_id=str(row["item_id"]),
        window=Window.from_name(str(row["window"])),
        stage=str(row["stage"]),
        reason=str(row["reason"]),
        transient=bool(row["transient"]),
        attempts=int(str(row["attempts"])),
        failed_at=row["failed_at"],  # type: ignore[arg-type]
        listing=listing,
    )
