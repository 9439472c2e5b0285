"""Beam's way into the lake: read windows as batches, write tables as the files of a window, commit its manifest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO, Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from listing_lens.lake import ROWS, Lake, Manifest
from listing_lens.window import Window

# About 12 MB of 768-d embeddings: large enough to compress and scan well, small enough to stream.
_ROWS_PER_GROUP = 4096


class ReadWindows(beam.PTransform):
    """Windows of a dataset → `pa.RecordBatch`es, each window read by one worker at a time."""

    def __init__(
        self,
        lake: Lake,
        dataset: str,
        columns: list[str] | None = None,
        *,
        kinds: tuple[str, ...] = (ROWS,),
        batch_rows: int = 4096,
    ) -> None:
        super().__init__()
        self._lake = lake
        self._dataset = dataset
        self._columns = columns
        self._kinds = kinds
        self._batch_rows = batch_rows

    def expand(self, windows: beam.PCollection) -> beam.PCollection:
        return windows | "Spread windows" >> beam.Reshuffle() | "Read batches" >> beam.FlatMap(self._batches)

    def _batches(self, window: Window) -> Iterator[pa.RecordBatch]:
        for kind in self._kinds:
            yield from self._lake.read(self._dataset, [window], self._columns, kind=kind, batch_rows=self._batch_rows)


@dataclass(frozen=True)
class WindowTarget:
    """Which window a run writes, and under which attempt's name."""

    lake: Lake
    dataset: str
    window: Window
    attempt: str = field(default_factory=lambda: Lake.new_attempt(datetime.now(UTC)))


class WriteFiles(beam.DoFn):
    """`pa.Table`s → (kind, name) of the Parquet files that hold them, one file a bundle.

    A file of a bundle that is tried again stays behind unnamed; the lake removes such files later.
    """

    def __init__(self, target: WindowTarget, kind: str, schema: pa.Schema) -> None:
        self._target = target
        self._kind = kind
        self._schema = schema

    def start_bundle(self) -> None:
        self._file: IO[bytes] | None = None
        self._buffer: list[pa.Table] = []

    def process(self, table: pa.Table) -> None:
        if self._file is None:
            self._open()
        self._buffer.append(table)
        if sum(len(part) for part in self._buffer) >= _ROWS_PER_GROUP:
            self._flush()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._file is None:
            return
        self._flush()
        self._writer.close()
        self._file.close()
        yield WindowedValue((self._kind, self._name), GlobalWindow().max_timestamp(), [GlobalWindow()])

    def _open(self) -> None:
        unique = Lake.new_attempt(datetime.now(UTC)).rsplit("-", 1)[-1]
        self._name = f"{self._target.attempt}-{self._kind.replace('_', '-')}-{unique}.parquet"
        self._file = self._target.lake.open_for_writing(self._target.dataset, self._target.window, self._name)
        self._writer = pq.ParquetWriter(self._file, self._schema, compression="zstd")

    def _flush(self) -> None:
        if self._buffer:
            self._writer.write_table(pa.concat_tables(self._buffer).cast(self._schema))
            self._buffer = []


def commit(
    target: WindowTarget, files: Iterable[tuple[str, str]], counts: dict[str, int], parameters: dict[str, Any]
) -> Manifest:
    """Write the manifest: the window now exists, and consists of these (kind, name) files."""
    by_kind: dict[str, list[str]] = {}
    for kind, name in sorted(files):
        by_kind.setdefault(kind, []).append(name)
    return target.lake.commit(
        Manifest(
            dataset=target.dataset,
            window=target.window.name,
            files=by_kind,
            counts=counts,
            parameters=parameters,
            created_at=datetime.now(UTC),
        )
    )
