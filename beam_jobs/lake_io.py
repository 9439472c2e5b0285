"""Beam's way into the lake: read windows as batches, write tables as the files of a window, commit its manifest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import IO, Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from listing_lens.errors import LensError
from listing_lens.images.source import resolve_uri
from listing_lens.lake.parquet import ROWS_PER_GROUP, RowGroupWriter
from listing_lens.lake.records import Listing, Session, listings_of, sessions_of, to_table
from listing_lens.lake.window import Window
from listing_lens.lake.windows import LISTINGS, ROWS, SESSIONS, Lake, Manifest


class ReadWindows(beam.PTransform):
    """Windows of a dataset → `pa.RecordBatch`es; a window, or those of one pack together, is read by one worker at a time."""

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
        return (
            windows
            | "Spread windows" >> beam.Reshuffle()
            | "Find" >> beam.Map(lambda window: (self._lake.place(self._dataset, window), window))
            | "By pack" >> beam.GroupByKey()
            | "Read batches" >> beam.FlatMap(lambda found: self._batches(found[1]))
        )

    def _batches(self, windows: Iterable[Window]) -> Iterator[pa.RecordBatch]:
        windows = sorted(windows)
        for kind in self._kinds:
            yield from self._lake.read(self._dataset, windows, self._columns, kind=kind, batch_rows=self._batch_rows)


@dataclass(frozen=True)
class WindowTarget:
    """Which window a run writes, and under which attempt's name."""

    lake: Lake
    dataset: str
    window: Window
    attempt: str = field(default_factory=lambda: Lake.new_attempt(datetime.now(UTC)))


class WindowFile:
    """A new Parquet file of a window, which a manifest has yet to name; rows are written group by group."""

    def __init__(self, target: WindowTarget, label: str, schema: pa.Schema, rows_per_group: int) -> None:
        unique = Lake.new_attempt(datetime.now(UTC)).rsplit("-", 1)[-1]
        self.name = f"{target.attempt}-{label.replace('_', '-')}-{unique}.parquet"
        self._file: IO[bytes] = target.lake.open_for_writing(target.dataset, target.window, self.name)
        self._writer = RowGroupWriter(self._file, schema, rows_per_group)

    def write(self, table: pa.Table) -> None:
        """Add rows."""
        self._writer.write(table)

    def close(self) -> None:
        """Write what is left, and the end of the file."""
        self._writer.close()
        self._file.close()


class WriteFiles(beam.DoFn):
    """`pa.Table`s → (kind, name) of the Parquet files that hold them, one file a bundle.

    A file of a bundle that is tried again stays behind unnamed; the lake removes such files later.
    """

    def __init__(
        self, target: WindowTarget, kind: str, schema: pa.Schema, rows_per_group: int = ROWS_PER_GROUP
    ) -> None:
        self._target = target
        self._kind = kind
        self._schema = schema
        self._rows_per_group = rows_per_group

    def start_bundle(self) -> None:
        self._file: WindowFile | None = None

    def process(self, table: pa.Table) -> None:
        if self._file is None:
            self._file = WindowFile(self._target, self._kind, self._schema, self._rows_per_group)
        self._file.write(table)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._file is None:
            return
        self._file.close()
        yield at_the_end((self._kind, self._file.name))


def at_the_end(output: Any) -> WindowedValue | TaggedOutput:
    """An output of `finish_bundle`, which has no element whose time it could take."""
    if isinstance(output, TaggedOutput):
        return TaggedOutput(output.tag, at_the_end(output.value))
    return WindowedValue(output, GlobalWindow().max_timestamp(), [GlobalWindow()])


class WriteRecords(beam.PTransform):
    """Records, as dataclasses or by column → (kind, name) of the files that hold them."""

    def __init__(
        self, target: WindowTarget, kind: str, schema: pa.Schema, rows_per_group: int = ROWS_PER_GROUP
    ) -> None:
        super().__init__(f"Write {kind}")
        self._schema = schema
        self._write = WriteFiles(target, kind, schema, rows_per_group)
        self._batch = min(1024, rows_per_group)

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        return (
            records
            | "Batch" >> beam.BatchElements(min_batch_size=self._batch // 4, max_batch_size=self._batch)
            | "As table" >> beam.Map(to_table, self._schema)
            | "Write files" >> beam.ParDo(self._write)
        )


def listings_in(lake: Lake, landed: Window, window: Window) -> Iterator[Listing]:
    """The listing versions of a window that one landed window holds, with absolute image addresses."""
    image_root = lake.manifest(LISTINGS, landed).image_root
    for batch in lake.read(LISTINGS, [landed]):
        for listing in listings_of(batch):
            if listing.updated_at in window:
                yield replace(listing, image_uri=resolve_uri(listing.image_uri, image_root))


def sessions_in(lake: Lake, landed: Window, window: Window) -> Iterator[Session]:
    """The sessions of a window that one landed window holds, with absolute image addresses."""
    image_root = lake.manifest(SESSIONS, landed).image_root
    for batch in lake.read(SESSIONS, [landed]):
        for session in sessions_of(batch):
            if session.searched_at in window:
                yield replace(session, query_image_uri=resolve_uri(session.query_image_uri, image_root))


def require_few_dead_letters(
    window: Window, dead: int, tried: int, reasons: Sequence[tuple[str, int]], max_ratio: float
) -> None:
    """Raise LensError when too many of the images that were tried are unusable; the commonest reasons are named."""
    # One bad image is one bad image, also among few.
    if dead > max(1, max_ratio * tried):
        mostly = ", ".join(f"{reason} ({count})" for reason, count in reasons)
        raise LensError(
            f"window {window}: {dead} of {tried} images are unusable, more than "
            f"LENS_MAX_DEAD_LETTER_RATIO={max_ratio} allows; mostly: {mostly}"
        )


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
