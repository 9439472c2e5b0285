"""The lake's records: the contract between everything that writes to it and everything that reads from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
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
        # The query: a photo, words, or both. One of the two is there.
        pa.field("query_image_uri", pa.string()),
        # The shown items, from the first position on, and whether each was tapped: lists of the same length.
        pa.field("shown", pa.list_(pa.string()), nullable=False),
        pa.field("tapped", pa.list_(pa.bool_()), nullable=False),
        # These columns are optional: if absent, they are read as nulls.
        # Further photos of the same item as the first.
        pa.field("more_query_image_uris", pa.list_(pa.string())),
        pa.field("query_text", pa.string()),
        # How much the words counted beside the photos, from 0 to 1; null is LENS_SEARCH_TEXT_WEIGHT.
        pa.field("query_text_weight", pa.float64()),
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


class QueryKind(StrEnum):
    """What a search was made with."""

    PHOTO = "photo"
    PHOTOS = "photos"
    TEXT = "text"
    PHOTO_AND_TEXT = "photo_and_text"


@dataclass(frozen=True, slots=True)
class Query:
    """What somebody searched with.

    Attributes:
        image_uris: of photos of one item.
        text: words; None without any.
        text_weight: how much the words count beside the photos, from 0 to 1; None for the setting.
    """

    image_uris: tuple[str, ...]
    text: str | None = None
    text_weight: float | None = None

    @property
    def kind(self) -> QueryKind:
        if self.text is None:
            return QueryKind.PHOTO if len(self.image_uris) == 1 else QueryKind.PHOTOS
        return QueryKind.PHOTO_AND_TEXT if self.image_uris else QueryKind.TEXT

    @property
    def sound(self) -> bool:
        """Whether there is a photo or a word, and a weight that is one."""
        return bool(self.image_uris or self.text) and 0 <= (self.text_weight or 0) <= 1


@dataclass(frozen=True, slots=True)
class Session:
    """A search by photo or words: what was shown, in order, and which items were tapped."""

    session_id: str
    searched_at: datetime
    query: Query
    shown: tuple[str, ...]
    tapped: tuple[bool, ...]

    @property
    def sound(self) -> bool:
        """Whether there is a query, and items were shown, each of them once, with a tap flag for each."""
        return self.query.sound and len(self.shown) == len(self.tapped) == len(set(self.shown)) > 0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An element that was set aside, with the reason, so that nothing is dropped silently."""

    item_id: str
    stage: str
    reason: str


def to_table(rows: Sequence[Any], schema: pa.Schema) -> pa.Table:
    """Records, as dataclasses or dicts → an Arrow table of the schema."""
    return pa.Table.from_pylist([_as_row(row) for row in rows], schema=schema)


def _as_row(record: Any) -> dict[str, Any]:
    if isinstance(record, dict):
        return record
    return _session_row(record) if isinstance(record, Session) else asdict(record)


def by_version(listing: Listing) -> tuple[int, str]:
    """Sort key for versions of an item. The whole record breaks remaining ties, so that a rerun keeps the same one."""
    return listing.version, repr(listing)


def listing_columns(listings: Sequence[Listing]) -> dict[str, list[Any]]:
    """Listings by column of `LISTING_SCHEMA`."""
    return {name: [getattr(listing, name) for listing in listings] for name in LISTING_SCHEMA.names}


def listings_of(batch: pa.RecordBatch) -> Iterator[Listing]:
    """The rows of a batch that was validated when written; nullable columns may be absent, and there may be others."""
    for row in _rows(batch, LISTING_SCHEMA):
        yield Listing(**row | {"category": tuple(row["category"]), "status": Status(row["status"])})


def parse_listings(batch: pa.RecordBatch, window: Window) -> Iterator[Listing | Refused]:
    """The rows of a batch of landed listings, which are not trusted to be valid.

    Args:
        batch: has the columns of `LISTING_SCHEMA`; nullable ones may be absent, and there may be others.
        window: the window in which the listings landed. Late rows, from before it, are accepted; rows from after it are not.
    """
    for row in _rows(batch, LISTING_SCHEMA):
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


def _rows(batch: pa.RecordBatch, schema: pa.Schema) -> Iterator[dict[str, Any]]:
    names = [name for name in schema.names if name in batch.schema.names]
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
    """The rows of a batch of sessions; nullable columns may be absent, and there may be others."""
    for row in _rows(batch, SESSION_SCHEMA):
        first, more = row.get("query_image_uri"), row.get("more_query_image_uris") or ()
        yield Session(
            session_id=row["session_id"],
            searched_at=row["searched_at"],
            query=Query(
                image_uris=(first, *more) if first else tuple(more),
                text=row.get("query_text") or None,
                text_weight=row.get("query_text_weight"),
            ),
            shown=tuple(row["shown"]),
            tapped=tuple(row["tapped"]),
        )


def _session_row(session: Session) -> dict[str, Any]:
    first, *more = session.query.image_uris or (None,)
    return {
        "session_id": session.session_id,
        "searched_at": session.searched_at,
        "query_image_uri": first,
        "more_query_image_uris": more or None,
        "query_text": session.query.text,
        "query_text_weight": session.query.text_weight,
        "shown": session.shown,
        "tapped": session.tapped,
    }
