"""The embeddings of one encoder: a table of the newest version of each item, a ledger, and dead letters.

<root>/embeddings/<encoder>/items.lance           the newest version of each item
                           /windows.lance         the ledger: which windows are embedded, from which input
                           /dead_letters.lance    listings that could not be embedded
                           /staging/<attempt>/    what a run has written but not merged yet
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from listing_lens.errors import LensError
from listing_lens.lake.records import LISTING_SCHEMA, Listing, listing_columns
from listing_lens.lake.tables import KEY_BATCH_ROWS, Place, Table, scan
from listing_lens.lake.window import Window
from listing_lens.lake.windows import Lake

# Data types in which embeddings can be stored.
EmbeddingDtype = Literal["float32", "float16"]
_ARROW_TYPES = {"float32": pa.float32(), "float16": pa.float16()}

# Of two rows of an item, the one with the larger `Listing.version` wins; on a tie, the existing one.
NEWER = "source.version > target.version"

_OTHER_FIELDS = (
    # `Listing.version`.
    pa.field("version", pa.int64(), nullable=False),
    # The name of the landed window that the listing came from.
    pa.field("window", pa.string(), nullable=False),
    # The 16-byte blake2b hash of the photo, and the backend that computed the embedding; null without an embedding.
    pa.field("photo", pa.binary()),
    pa.field("backend", pa.string()),
)


def item_schema(dims: int, dtype: EmbeddingDtype = "float32") -> pa.Schema:
    """An item's row: its listing, its origin, and its embedding, which is null once the item is sold or deleted."""
    schema = LISTING_SCHEMA
    for field in (*_OTHER_FIELDS, pa.field("embedding", pa.list_(_ARROW_TYPES[dtype], dims))):
        schema = schema.append(field)
    return schema


@dataclass(frozen=True)
class Embedded:
    """The embedding of a photo, (dims,) of unit length, with the hash of the photo's bytes and the backend."""

    embedding: NDArray[np.floating]
    photo: bytes
    backend: str


@dataclass(frozen=True)
class Item:
    """A row: a listing of a landed window; without an embedding if it is sold or deleted."""

    listing: Listing
    window: Window
    embedded: Embedded | None


def item_batch(items: list[Item], schema: pa.Schema) -> pa.RecordBatch:
    """Items as rows of a schema made by `item_schema`.

    Raises:
        LensError: an embedding is not finite, or of the wrong dimension.
    """
    field = schema.field("embedding").type
    matrix = np.zeros((len(items), field.list_size), np.float32)
    for row, item in zip(matrix, items, strict=True):
        if item.embedded is not None:
            if item.embedded.embedding.shape != row.shape or not np.isfinite(item.embedded.embedding).all():
                raise LensError(
                    f"the embedding of item {item.listing.item_id!r} is not {field.list_size} finite numbers: "
                    "check the encoder's weights"
                )
            row[:] = item.embedded.embedding
    absent = pa.array([item.embedded is None for item in items], pa.bool_())
    numbers = pa.array(matrix.ravel().astype(field.value_type.to_pandas_dtype(), copy=False))
    columns = listing_columns([item.listing for item in items]) | {
        "version": [item.listing.version for item in items],
        "window": [item.window.name for item in items],
        "photo": [item.embedded and item.embedded.photo for item in items],
        "backend": [item.embedded and item.embedded.backend for item in items],
        "embedding": pa.FixedSizeListArray.from_arrays(numbers, field.list_size, mask=absent),
    }
    return pa.RecordBatch.from_arrays(
        [pa.array(columns[f.name], f.type) if isinstance(columns[f.name], list) else columns[f.name] for f in schema],
        schema=schema,
    )


def embedding_matrix(batch: pa.RecordBatch) -> NDArray[np.float32]:
    """The embeddings of a batch without nulls: (n, dims) float32, whatever the stored type.

    Float16 is converted by torch, which uses the CPU's conversion instruction: four times as fast as NumPy.
    """
    column = batch.column("embedding")
    if column.null_count:
        raise LensError(
            "rows without an embedding were to be read as a matrix: leave out those that are sold or deleted"
        )
    numbers = column.flatten()
    singles = _as_float32(numbers) if numbers.type == pa.float16() else numbers.to_numpy(zero_copy_only=True)
    matrix: NDArray[np.float32] = singles.reshape(len(column), column.type.list_size)
    return matrix


def _as_float32(halves: pa.HalfFloatArray) -> NDArray[np.float32]:
    import torch

    singles = np.empty(len(halves), np.float32)
    if len(halves):
        torch.from_numpy(singles).copy_(torch.from_dlpack(halves))
    return singles


def with_embedding(batch: pa.RecordBatch) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Which rows of a batch have an embedding (n,), and those embeddings: (m, dims) float32."""
    column = batch.column("embedding")
    present = column.is_valid()
    kept = batch if column.null_count == 0 else batch.filter(present)
    return present.to_numpy(zero_copy_only=False), embedding_matrix(kept)


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of one encoder in a lake."""

    lake: Lake
    encoder_id: str

    @property
    def folder(self) -> str:
        return f"{self.lake.root}/embeddings/{self.encoder_id}"

    @property
    def items(self) -> Table:
        return Table(f"{self.folder}/items.lance", "item_id")

    @property
    def windows(self) -> Table:
        """The table of `listing_lens.lake.ledger`."""
        return Table(f"{self.folder}/windows.lance", "window")

    @property
    def dead_letters(self) -> Table:
        """The table of `listing_lens.lake.dead_letters`."""
        return Table(f"{self.folder}/dead_letters.lance", "key")

    @property
    def tables(self) -> tuple[Table, ...]:
        return self.items, self.windows, self.dead_letters

    @property
    def staging(self) -> str:
        """The folder of what runs have written but not merged yet, with a subfolder per attempt."""
        return f"{self.folder}/staging"

    def require(self) -> int:
        """The latest version of the items table. Raises LensError when the encoder has embedded nothing yet."""
        version = self.items.version()
        if version is None:
            raise LensError(
                f"the lake {self.lake.root} holds no embeddings of {self.encoder_id} yet: run `lens embed` first"
            )
        return version

    def dims(self) -> int:
        """The dimension of the embeddings. Raises LensError when the encoder has embedded nothing yet."""
        return int(self.items.open(self.require()).schema.field("embedding").type.list_size)

    def count(self, version: int, filter: str | None = None) -> int:
        """The number of rows in a version of the items table."""
        return int(self.items.open(version).count_rows(filter))

    def schema(self, dims: int, dtype: EmbeddingDtype) -> pa.Schema:
        """The schema of the items table; if there is none yet, the schema it will have.

        Raises:
            LensError: the table holds embeddings of a different dimension.
        """
        version = self.items.version()
        if version is None:
            return item_schema(dims, dtype)
        held = self.items.open(version).schema.field("embedding").type
        if held.list_size != dims:
            raise LensError(f"{self.items.path} holds embeddings of {held.list_size} dimensions, not of {dims}")
        return item_schema(dims, "float16" if held.value_type == pa.float16() else "float32")


def every_encoder(lake: Lake) -> list[Embeddings]:
    """The embeddings of every encoder in the lake, sorted by encoder id."""
    return [Embeddings(lake, encoder_id) for encoder_id in lake.folders(f"{lake.root}/embeddings")]


def embedded_within(window: Window | None) -> str:
    """An SQL filter for the rows with an embedding; if a window is given, only of items last updated in it."""
    present = "embedding IS NOT NULL"
    if window is None:
        return present
    return f"{present} AND updated_at >= {_literal(window.start)} AND updated_at < {_literal(window.end)}"


def removed_before(moment: datetime) -> str:
    """An SQL filter for the rows of items that were sold or deleted before a given time."""
    return f"embedding IS NULL AND updated_at < {_literal(moment)}"


def _literal(moment: datetime) -> str:
    return f"timestamp '{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}'"


def rows_of(table: Table, place: Place, item_ids: pa.Array, columns: list[str]) -> pa.Table:
    """The rows of given items in one fragment of a table; for all other rows, only the key column is read."""
    version, fragment = place
    opened = table.open(version)
    part = opened.get_fragment(fragment)
    assert part is not None, f"fragment {fragment} of {table.path} is gone"
    found, offset = [], 0
    for batch in scan(part, [table.key], batch_size=KEY_BATCH_ROWS):
        matches = pc.indices_nonzero(pc.is_in(batch.column(0), value_set=item_ids))
        found.append(pc.add(pc.cast(matches, pa.int64()), offset))
        offset += len(batch)
    offsets = pa.concat_arrays(found) if found else pa.array([], pa.int64())
    return part.take(offsets.to_pylist(), columns=columns) if len(offsets) else _no_rows(opened.schema, columns)


def _no_rows(schema: pa.Schema, columns: list[str]) -> pa.Table:
    return pa.schema([schema.field(name) for name in columns]).empty_table()
