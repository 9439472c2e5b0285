"""Reading the lake's tables in a pipeline: fragment by fragment, each by one worker, or only the rows of given items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import AsDict

from listing_lens.lake.embeddings import rows_of
from listing_lens.lake.tables import BATCH_ROWS, Place, Table, places_of, scan


class ReadTable(beam.PTransform):
    """A version of a table → `pa.RecordBatch`es of the given columns, of the rows that match an SQL filter."""

    def __init__(
        self, table: Table, version: int, columns: list[str], *, filter: str | None = None, batch_rows: int = BATCH_ROWS
    ) -> None:
        super().__init__()
        self._table = table
        self._version = version
        self._columns = columns
        self._filter = filter
        self._batch_rows = batch_rows

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection[pa.RecordBatch]:
        return (
            pipeline
            | "Fragments" >> beam.Create([fragment for _, fragment in places_of(self._table, self._version)])
            | "Spread fragments" >> beam.Reshuffle()
            | "Read batches" >> beam.FlatMap(self._batches)
        )

    def _batches(self, fragment: int) -> Iterator[pa.RecordBatch]:
        part = self._table.open(self._version).get_fragment(fragment)
        assert part is not None, f"fragment {fragment} of {self._table.path} is gone"
        yield from scan(part, self._columns, filter=self._filter, batch_size=self._batch_rows)


class ReadItems(beam.PTransform):
    """(item id, anything), one per item → `pa.RecordBatch`es with the rows of these items in given fragments of a table.

    The ids are sent to every worker and must fit in memory; the table need not. Of all other rows, only the ids are read.
    """

    def __init__(self, table: Table, places: Sequence[Place], columns: list[str]) -> None:
        super().__init__()
        self._table = table
        self._places = places
        self._columns = columns

    def expand(self, items: beam.PCollection[tuple[str, Any]]) -> beam.PCollection[pa.RecordBatch]:
        return (
            items.pipeline
            | "Fragments" >> beam.Create(self._places)
            | "Spread fragments" >> beam.Reshuffle()
            | "Read rows" >> beam.FlatMap(self._rows, AsDict(items))
        )

    def _rows(self, place: Place, wanted: Mapping[str, object]) -> Iterator[pa.RecordBatch]:
        if wanted:
            item_ids = pa.array(list(wanted), pa.string())
            yield from rows_of(self._table, place, item_ids, self._columns).to_batches()
