"""The lake's records: the contract between everything that writes to it and everything that reads from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from hashlib import blake2b
from typing import Any

import pyarrow as pa

from listing_lens.errors import LensError
from listing_lens.lake.window import Window


class Status(StrEnum):
    """A listing's lifecycle status. Only `on_sale` and `reserved` listings are searchable."""

    ON_SALE = "on_sale"
    RESERVED = "reserved"
    SOLD = "sold"
    DELETED = "deleted"


_STATUSES = frozenset(Status)
SEARCHABLE = frozenset({Status.ON_SALE, Status.RESERVED})

TIMESTAMP = pa.timestamp("us", tz="UTC")

# Elasticsearch's limits for an id and a keyword.
MAX_ID_BYTES = 512
MAX_CATEGORY_BYTES = 32_766

# The range of times that a version can represent, and the bits it has for the content.
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_END_OF_TIME = datetime(2112, 1, 1, tzinfo=UTC)
_CONTENT_BITS = 10

LISTING_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        # From coarse to fine, e.g. ["Fashion", "Shoes", "Sneakers"].
        pa.field("category", pa.list_(pa.string()), nullable=False),
        pa.field("price", pa.int64(), nullable=False),
        # An absolute address, or a path relative to the image root in the window's manifest.
        pa.field("image_uri", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("created_at", TIMESTAMP, nullable=False),
        pa.field("updated_at", TIMESTAMP, nullable=False),
        # These two columns are optional: if absent, they are read as nulls.
        pa.field("seller_id", pa.string()),
        # The marketplace's own product code, if known: shared by all listings of the product.
        pa.field("product_id", pa.string()),
    ]
)

SESSION_SCHEMA = pa.schema(
    [
        pa.field("session_id", pa.string(), nullable=False),
        pa.field("searched_at", TIMESTAMP, nullable=False),
        pa.field("query_image_uri", pa.string(), nullable=False),
        # The shown items, from the first position on, and whether each was tapped: lists of the same length.
        pa.field("shown", pa.list_(pa.string()), nullable=False),
        pa.field("tapped", pa.list_(pa.bool_()), nullable=False),
    ]
)

DEAD_LETTER_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Listing:
    """One version of an item for sale, as of `updated_at`."""

    item_id: str
    title: str
    category: tuple[str, ...]
    price: int
    image_uri: str
    status: Status
    created_at: datetime
    updated_at: datetime
    seller_id: str | None = None
    product_id: str | None = None

    def __post_init__(self) -> None:
        # Normalise to UTC: the version depends on the representation.
        for moment in ("created_at", "updated_at"):
            object.__setattr__(self, moment, getattr(self, moment).astimezone(UTC).replace(fold=0))

    @property
    def searchable(self) -> bool:
        return self.status in SEARCHABLE

    @property
    def version(self) -> int:
        """Decides between versions of an item, everywhere: the larger one wins.

        It is `updated_at` in microseconds since 1970, times 2048. Of two versions with the same time, one that is not
        searchable wins; remaining ties are broken by a 10-bit hash of the content. Until 2112 it fits the 63 bits that
        Elasticsearch allows.
        """
        microseconds = (self.updated_at - _EPOCH) // timedelta(microseconds=1)
        content = blake2b(repr(self).encode(), digest_size=2)
        tie = (not self.searchable) << _CONTENT_BITS | int.from_bytes(content.digest()) >> (16 - _CONTENT_BITS)
        return microseconds << _CONTENT_BITS + 1 | tie


@dataclass(frozen=True, slots=True)
class Refused:
    """An invalid row, with the reason; `row` is the row as JSON."""

    item_id: str
    reason: str
    row: str


@dataclass(frozen=True, slots=True)
class Session:
    """A search by photo: what was shown, in order, and which items were tapped."""

    session_id: str
    searched_at: datetime
    query_image_uri: str
    shown: tuple[str, ...]
    tapped: tuple[bool, ...]

    @property
    def sound(self) -> bool:
        """Whether items were shown, each of them once, with a tap flag for each."""
        return len(self.shown) == len(self.tapped) == len(set(self.shown)) > 0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An element that was set aside, with the reason, so that nothing is dropped silently."""

    item_id: str
    stage: str
    reason: str


def to_table(rows: Sequence[Any], schema: pa.Schema) -> pa.Table:
    """Records, as dataclasses or dicts → an Arrow table of the schema."""
    return pa.Table.from_pylist([row if isinstance(row, dict) else asdict(row) for row in rows], schema=schema)


def by_version(listing: Listing) -> tuple[int, str]:
    """Sort key for versions of an item. The whole record breaks remaining ties, so that a rerun keeps the same one."""
    return listing.version, repr(listing)


def listing_columns(listings: Sequence[Listing]) -> dict[str, list[Any]]:
    """Listings by column of `LISTING_SCHEMA`."""
    return {name: [getattr(listing, name) for listing in listings] for name in LISTING_SCHEMA.names}


def listings_of(batch: pa.RecordBatch) -> Iterator[Listing]:
    """The rows of a batch that was validated when written; nullable columns may be absent, and there may be others."""
    for row in _rows(batch):
        yield Listing(**row | {"category": tuple(row["category"]), "status": Status(row["status"])})


def parse_listings(batch: pa.RecordBatch, window: Window) -> Iterator[Listing | Refused]:
    """The rows of a batch of landed listings, which are not trusted to be valid.

    Args:
        batch: has the columns of `LISTING_SCHEMA`; nullable ones may be absent, and there may be others.
        window: the window in which the listings landed. Late rows, from before it, are accepted; rows from after it are not.
    """
    for row in _rows(batch):
        problem = problem_of(row)
        reason = problem[1] if problem else _too_late(row, window)
        if reason is None:
            yield Listing(**row | {"category": tuple(row["category"]), "status": Status(row["status"])})
        else:
            yield Refused(str(row["item_id"] or ""), reason, json.dumps(row, default=str, sort_keys=True))


def require_columns(schema: pa.Schema, wanted: pa.Schema, where: str) -> None:
    """Raise LensError unless a schema has the columns of another, with the same types; nullable ones may be absent."""
    for field in wanted:
        at = schema.get_field_index(field.name)
        if at < 0 and not field.nullable:
            raise LensError(f"{where} has no column {field.name!r}: write it as listing_lens/lake/records.py says")
        if at >= 0 and schema.field(at).type != field.type:
            raise LensError(
                f"{where}: column {field.name!r} is {schema.field(at).type} instead of {field.type}: "
                "write it as listing_lens/lake/records.py says"
            )


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    names = [name for name in LISTING_SCHEMA.names if name in batch.schema.names]
    yield from batch.select(names).to_pylist()


def problem_of(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """The field that is at fault and why, of a row with the fields of `LISTING_SCHEMA` that is no valid listing; else None."""
    for field in LISTING_SCHEMA:
        if not field.nullable and row.get(field.name) is None:
            return field.name, f"it has no {field.name}"
    if not row["item_id"]:
        return "item_id", "its item_id is empty"
    if len(row["item_id"].encode()) > MAX_ID_BYTES:
        return "item_id", f"its item_id is longer than {MAX_ID_BYTES} bytes"
    if row["status"] not in _STATUSES:
        return "status", f"its status {row['status'][:40]!r} is none of {', '.join(Status)}"
    if any(part is None for part in row["category"]):
        return "category", "its category has an empty level"
    if any(len(part.encode()) > MAX_CATEGORY_BYTES for part in row["category"]):
        return "category", f"its category has a level longer than {MAX_CATEGORY_BYTES} bytes"
    if not _EPOCH <= row["updated_at"] < _END_OF_TIME:
        return (
            "updated_at",
            f"its updated_at {row['updated_at'].isoformat()} is not between 1970 and {_END_OF_TIME.year}",
        )
    return None


def _too_late(row: Mapping[str, Any], window: Window) -> str | None:
    if row["updated_at"] >= window.end:
        return f"its updated_at {row['updated_at'].isoformat()} is not before the end of {window}"
    return None


def sessions_of(batch: pa.RecordBatch) -> Iterator[Session]:
    """The rows of a batch of sessions."""
    for row in batch.select([field.name for field in fields(Session)]).to_pylist():
        yield Session(**row | {"shown": tuple(row["shown"]), "tapped": tuple(row["tapped"])})
