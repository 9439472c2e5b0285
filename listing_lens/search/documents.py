"""What an index holds of a listing: the mapping, and documents made from a table's rows or from listings.

Vectors are checked here, before they are sent: Elasticsearch would refuse a bad one as well, but only after the whole load
has been turned into text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from listing_lens.lake.records import SEARCHABLE, Listing

# How far from 1 a squared length may be. Elasticsearch accepts 1e-3, in its own rounding: what passes here passes there.
_SQUARE_TOLERANCE = 9e-4


@dataclass(frozen=True, slots=True)
class Document:
    """A version of an item as an index holds it; its `source` has a "vector", (dims,) float32, if it is searchable."""

    item_id: str
    version: int
    source: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A version of an item that an index cannot hold, and why."""

    item_id: str
    version: int
    reason: str


def properties(dims: int, index_options: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping's properties, for vectors of so many dimensions; `index_options` are Elasticsearch's for them."""
    return {
        "item_id": {"type": "keyword"},
        "title": {"type": "text"},
        "category": {"type": "keyword"},
        "price": {"type": "long"},
        "status": {"type": "keyword"},
        "image_uri": {"type": "keyword", "index": False, "doc_values": False},
        "created_at": {"type": "date"},
        "updated_at": {"type": "date"},
        # Vectors have unit length, so the dot product is the cosine, without a division per comparison.
        "vector": {
            "type": "dense_vector",
            "dims": dims,
            "index": True,
            "similarity": "dot_product",
            "index_options": dict(index_options),
        },
    }


def documents_of(
    batch: pa.RecordBatch, vectors: NDArray[np.float32], present: NDArray[np.bool_], dims: int
) -> Iterator[Document | Refusal]:
    """The rows of an items table as documents, in order, without the detour through `Listing`.

    Args:
        batch: n rows, with the columns of `LISTING_SCHEMA` and their `version`.
        vectors: (m, dims) float32, of the m rows that have one, in order.
        present: (n,), which rows those are.
        dims: the index's.
    """
    assert len(vectors) == present.sum(), "there must be a vector for each row that has one"
    columns = zip(
        present.tolist(),
        batch.column("version").to_pylist(),
        batch.column("item_id").to_pylist(),
        batch.column("title").to_pylist(),
        batch.column("category").to_pylist(),
        batch.column("price").to_pylist(),
        batch.column("status").to_pylist(),
        batch.column("image_uri").to_pylist(),
        _moments(batch.column("created_at")),
        _moments(batch.column("updated_at")),
        strict=True,
    )
    checked = zip(np.ascontiguousarray(vectors), _problems(vectors, dims), strict=True)
    for there, version, *row in columns:
        vector, problem = next(checked) if there else (None, None)
        yield _document(version, _source(*row), vector, problem)


def document_of(listing: Listing, vector: NDArray[np.float32] | None, dims: int | None = None) -> Document | Refusal:
    """A listing as a document: the same as of its row in a table.

    Args:
        vector: (dims,) float32; None of a listing that is not searchable.
        dims: the index's; None leaves it unchecked.
    """
    source = _source(
        listing.item_id,
        listing.title,
        list(listing.category),
        listing.price,
        str(listing.status),
        listing.image_uri,
        listing.created_at,
        listing.updated_at,
    )
    if vector is None:
        return _document(listing.version, source, None, None)
    row = np.ascontiguousarray(vector, np.float32).reshape(1, -1)
    [problem] = _problems(row, row.size if dims is None else dims)
    return _document(listing.version, source, row[0], problem)


def _source(
    item_id: str,
    title: str,
    category: list[str],
    price: int,
    status: str,
    image_uri: str,
    created_at: datetime,
    updated_at: datetime,
) -> dict[str, Any]:
    return {
        "item_id": item_id,
        "title": title,
        "category": category,
        "price": price,
        "status": status,
        "image_uri": image_uri,
        "created_at": created_at,
        "updated_at": updated_at,
    }


def _document(
    version: int, source: dict[str, Any], vector: NDArray[np.float32] | None, problem: str | None
) -> Document | Refusal:
    """Of a listing that is not searchable, the vector is left out, whatever it is."""
    item_id, status = source["item_id"], source["status"]
    if status not in SEARCHABLE:
        return Document(item_id, version, source)
    if vector is None:
        return Refusal(item_id, version, f"it is {status} but has no vector")
    if problem:
        return Refusal(item_id, version, problem)
    return Document(item_id, version, source | {"vector": vector})


def _problems(vectors: NDArray[np.float32], dims: int) -> list[str | None]:
    """What is wrong with each of the vectors (m, …); None if nothing is."""
    if vectors.shape[1] != dims:
        return [f"its vector has {vectors.shape[1]} dimensions instead of {dims}"] * len(vectors)
    squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    # Comparisons with what is not finite are false.
    sound = np.abs(squares - 1) <= _SQUARE_TOLERANCE
    return [None if ok else _problem(square) for ok, square in zip(sound.tolist(), squares.tolist(), strict=True)]


def _problem(square: float) -> str:
    if not math.isfinite(square):
        return "its vector has a number that is not finite"
    return f"its vector has length {math.sqrt(square):.4g} instead of 1"


def _moments(column: pa.TimestampArray) -> list[datetime]:
    """Times with their zone, UTC; several times as fast as `to_pylist`."""
    naive = column.cast(pa.timestamp("us")).to_numpy(zero_copy_only=False).tolist()
    return [moment.replace(tzinfo=UTC) for moment in naive]
