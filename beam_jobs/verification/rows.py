"""The table's rows with their vectors, as the index should hold them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beam_jobs.verification.config import Config
from listing_lens.lake.embeddings import with_embedding
from models.projection import Projection

# The fields of a document that are compared.
FIELDS = ["title", "category", "price", "status", "image_uri"]
COLUMNS = ["item_id", "version", *FIELDS, "embedding"]
# Rows looked up together: 3 MB of 768-d embeddings.
BATCH_ROWS = 1000


@dataclass(frozen=True)
class Rows:
    """A batch of the table.

    Attributes:
        item_ids: (n,)
        versions: `Listing.version` of each, (n,).
        fields: `FIELDS` of each, (n,).
        with_vector: the ids of those with an embedding, (m,), in the order of the rows.
        vectors: their projected embeddings, (m, dims) float32.
    """

    item_ids: list[str]
    versions: list[int]
    fields: list[Mapping[str, Any]]
    with_vector: list[str]
    vectors: NDArray[np.float32]


def rows_of_batch(batch: pa.RecordBatch, projection: Projection) -> Rows:
    """A batch with `COLUMNS`, projected."""
    present, embeddings = with_embedding(batch)
    item_ids = batch.column("item_id").to_pylist()
    return Rows(
        item_ids=item_ids,
        versions=batch.column("version").to_pylist(),
        fields=batch.select(FIELDS).to_pylist(),
        with_vector=[item_ids[row] for row in np.flatnonzero(present)],
        vectors=projection.apply(embeddings),
    )


class ProjectRows(beam.DoFn):
    """`pa.RecordBatch` → `Rows`."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def setup(self) -> None:
        self._projection = self._config.projection()

    def process(self, batch: pa.RecordBatch) -> Iterator[Rows]:
        yield rows_of_batch(batch, self._projection)
