"""What the lake holds, row by row: the contract between everything that writes it and everything that reads it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class Status(StrEnum):
    """Where a listing is in its life. Only `on_sale` and `reserved` ones can be found by searching."""

    ON_SALE = "on_sale"
    RESERVED = "reserved"
    SOLD = "sold"
    DELETED = "deleted"


SEARCHABLE = frozenset({Status.ON_SALE, Status.RESERVED})

TIMESTAMP = pa.timestamp("us", tz="UTC")

LISTING_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        # From coarse to fine, e.g. ["Fashion", "Shoes", "Sneakers"].
        pa.field("category", pa.list_(pa.string()), nullable=False),
        pa.field("price", pa.int64(), nullable=False),
        # An absolute address, or a path relative to the image root that the window's manifest names.
        pa.field("image_uri", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("created_at", TIMESTAMP, nullable=False),
        pa.field("updated_at", TIMESTAMP, nullable=False),
        # Windows that were written without these two are read as if they held nulls.
        pa.field("seller_id", pa.string()),
        # The marketplace's own code of the product, where it knows one: the same for every listing of it.
        pa.field("product_id", pa.string()),
    ]
)

SESSION_SCHEMA = pa.schema(
    [
        pa.field("session_id", pa.string(), nullable=False),
        pa.field("searched_at", TIMESTAMP, nullable=False),
        pa.field("query_image_uri", pa.string(), nullable=False),
        # The items shown, from the first position on, and whether each was tapped: equally long.
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


# How embeddings are stored; what a window's are stored as is the parameter `embedding_dtype` of its manifest.
EmbeddingDtype = Literal["float32", "float16"]
_ARROW_TYPES = {"float32": pa.float32(), "float16": pa.float16()}


def embedding_schema(dims: int, dtype: EmbeddingDtype = "float32") -> pa.Schema:
    """A listing's row and its embedding, of unit length, as a fixed-size list of `dims` numbers of `dtype`."""
    # Without nulls there are no validity bits to decode, which makes the column a third faster to read.
    number = pa.field("element", _ARROW_TYPES[dtype], nullable=False)
    return LISTING_SCHEMA.append(pa.field("embedding", pa.list_(number, dims), nullable=False))


@dataclass(frozen=True, slots=True)
class Listing:
    """One item for sale, at one moment of its life (`updated_at`)."""

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

    @property
    def searchable(self) -> bool:
        return self.status in SEARCHABLE


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
        """Whether each item was shown once, and said to be tapped or not."""
        return len(self.shown) == len(self.tapped) == len(set(self.shown)) > 0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An element that was set aside, with the reason, so that nothing is lost without a word."""

    item_id: str
    stage: str
    reason: str


def to_table(rows: Sequence[Any], schema: pa.Schema) -> pa.Table:
    """Records, as dataclasses or by column, as an Arrow table of the schema."""
    return pa.Table.from_pylist([row if isinstance(row, dict) else asdict(row) for row in rows], schema=schema)


def newest(versions: Iterable[Listing]) -> Listing:
    """The newest version of an item. The whole record breaks a tie of times, so that a rerun keeps the same one."""
    return max(versions, key=lambda listing: (listing.updated_at, repr(listing)))


def embeddings_table(
    listings: Sequence[Listing], embeddings: NDArray[np.float32], dtype: EmbeddingDtype = "float32"
) -> pa.Table:
    """Listings with their embeddings (n, dims), stored as `dtype`."""
    field = embedding_schema(embeddings.shape[1], dtype).field("embedding")
    numbers = pa.array(np.ravel(embeddings).astype(dtype, copy=False))
    column = pa.FixedSizeListArray.from_arrays(numbers, type=field.type)
    return to_table(listings, LISTING_SCHEMA).append_column(field, column)


def embedding_matrix(batch: pa.RecordBatch) -> NDArray[np.float32]:
    """The embeddings of a batch: (n, dims) float32 whatever is stored, without a copy where Arrow allows."""
    column = batch.column("embedding")
    numbers = column.flatten().to_numpy(zero_copy_only=False)
    matrix: NDArray[np.float32] = numbers.astype(np.float32, copy=False).reshape(len(column), column.type.list_size)
    return matrix


def embedding_dims(schema: pa.Schema) -> int:
    """How many dimensions embeddings of a schema have."""
    return int(schema.field("embedding").type.list_size)


def listings_of(batch: pa.RecordBatch) -> Iterator[Listing]:
    """The rows of a batch that has a listing's columns, maybe without those that may be null, and maybe others."""
    names = [name for name in LISTING_SCHEMA.names if name in batch.schema.names]
    for row in batch.select(names).to_pylist():
        yield Listing(**row | {"category": tuple(row["category"]), "status": Status(row["status"])})


def sessions_of(batch: pa.RecordBatch) -> Iterator[Session]:
    """The rows of a batch of sessions."""
    for row in batch.select([field.name for field in fields(Session)]).to_pylist():
        yield Session(**row | {"shown": tuple(row["shown"]), "tapped": tuple(row["tapped"])})
