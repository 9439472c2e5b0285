"""Windows of the lake in a pipeline: read what has landed, write tables as a window's files, commit its manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import IO, Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import AsDict, AsList, TaggedOutput
from apache_beam.transforms.window import GlobalWindow
from apache_beam.typehints.decorators import no_annotations
from apache_beam.utils.windowed_value import WindowedValue

from listing_lens.errors import LensError
from listing_lens.images.source import resolve_uri
from listing_lens.lake.parquet import ROWS_PER_GROUP, RowGroupWriter
from listing_lens.lake.records import Listing, Refused, Session, parse_listings, sessions_of, to_table
from listing_lens.lake.window import Window
from listing_lens.lake.windows import Lake, Manifest

# How many reasons an error message lists.
_NAMED_REASONS = 3


@dataclass(frozen=True)
class WindowTarget:
    """The window that a run writes, the name of the attempt, and what the window's relative image addresses start from."""

    lake: Lake
    dataset: str
    window: Window
    attempt: str = field(default_factory=lambda: Lake.new_attempt(datetime.now(UTC)))
    image_root: str | None = None


class WindowFile:
    """A new Parquet file of a window, not yet named in a manifest; rows are written group by group."""

    def __init__(self, target: WindowTarget, label: str, schema: pa.Schema, rows_per_group: int) -> None:
        unique = Lake.new_attempt(datetime.now(UTC)).rsplit("-", 1)[-1]
        self.name = f"{target.attempt}-{label.replace('_', '-')}-{unique}.parquet"
        self._file: IO[bytes] = target.lake.open_for_writing(target.dataset, target.window, self.name)
        self._writer = RowGroupWriter(self._file, schema, rows_per_group)

    def write(self, table: pa.Table) -> None:
        """Add rows."""
        self._writer.write(table)

    def close(self) -> None:
        """Write the remaining rows, and close the file."""
        self._writer.close()
        self._file.close()


class WriteFiles(beam.DoFn):
    """`pa.Table`s → (kind, name) of the Parquet files that hold them, one file per bundle.

    If a bundle is retried, its first file is left unreferenced; the lake removes such files later.
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
    """An output of `finish_bundle`, which has no element to take a timestamp from."""
    if isinstance(output, TaggedOutput):
        return TaggedOutput(output.tag, at_the_end(output.value))
    return WindowedValue(output, GlobalWindow().max_timestamp(), [GlobalWindow()])


class WriteRecords(beam.PTransform):
    """Records, as dataclasses or dicts → (kind, name) of the files that hold them."""

    def __init__(
        self, target: WindowTarget, kind: str, schema: pa.Schema, rows_per_group: int = ROWS_PER_GROUP
    ) -> None:
        super().__init__(f"Write {kind}")
        self._schema = schema
        self._write = WriteFiles(target, kind, schema, rows_per_group)
        self._batch = min(1024, rows_per_group)

    def expand(self, records: beam.PCollection[Any]) -> beam.PCollection[tuple[str, str]]:
        return (
            records
            | "Batch" >> beam.BatchElements(min_batch_size=self._batch // 4, max_batch_size=self._batch)
            | "As table" >> beam.Map(to_table, self._schema)
            | "Write files" >> beam.ParDo(self._write)
        )


@dataclass(frozen=True)
class Landed:
    """A landed window of listings or sessions, pinned when a run begins: it is read as it was, even if replaced later."""

    window: Window
    manifest: Manifest

    @classmethod
    def find(cls, lake: Lake, dataset: str, windows: Iterable[Window]) -> tuple[Landed, ...]:
        """The current state of the given windows. Raises LensError when one is absent."""
        return tuple(cls(window, manifest) for window, manifest in lake.manifests(dataset, windows).items())

    def takes(self, moment: datetime, window: Window) -> bool:
        """Whether a row of this time belongs to a window; a late row counts as the first moment of the landed window."""
        return max(moment, self.window.start) in window


def image_roots(landed: Iterable[Landed]) -> list[str]:
    """The base addresses of the windows' relative image addresses: images below them may be read."""
    return sorted({root for part in landed if (root := part.manifest.image_root)})


def landed_listings(lake: Lake, landed: Landed, window: Window) -> Iterator[Listing | Refused]:
    """The listing versions in a landed window that belong to `window`, with absolute image addresses; and invalid rows."""
    for batch in lake.read_manifest(landed.manifest):
        for listing in parse_listings(batch, landed.window):
            if isinstance(listing, Refused):
                yield listing
            elif landed.takes(listing.updated_at, window):
                yield replace(listing, image_uri=resolve_uri(listing.image_uri, landed.manifest.image_root))


def landed_sessions(lake: Lake, landed: Landed, window: Window) -> Iterator[Session]:
    """The sessions in a landed window that belong to `window`, with absolute image addresses."""
    for batch in lake.read_manifest(landed.manifest):
        for session in sessions_of(batch):
            if landed.takes(session.searched_at, window):
                images = tuple(resolve_uri(uri, landed.manifest.image_root) for uri in session.query.image_uris)
                yield replace(session, query=replace(session.query, image_uris=images))


def require_few_dead_letters(
    where: object, dead: int, tried: int, reasons: Sequence[tuple[str, int]], max_ratio: float
) -> None:
    """Raise LensError, naming the most common reasons, when too many of the attempted listings became dead letters."""
    # A single bad image never fails a window, however small.
    if dead > max(1, max_ratio * tried):
        mostly = ", ".join(f"{reason} ({count})" for reason, count in reasons)
        raise LensError(
            f"window {where}: {dead} of {tried} listings are unusable, more than "
            f"LENS_MAX_DEAD_LETTER_RATIO={max_ratio} allows; mostly: {mostly}"
        )


# Validates the results of a run: its counts, and named lists of whatever else is needed. Returns the counts and parameters
# for the manifest, or raises LensError.
Seal = Callable[..., tuple[dict[str, int], dict[str, Any]]]


class CommitWindow(beam.PTransform):
    """The results of a run for a window → its manifest: from then on the window exists, and consists of the run's files.

    Args:
        target: the window.
        seal: validates the results before they are committed.
    """

    def __init__(self, target: WindowTarget, seal: Seal) -> None:
        super().__init__()
        self._target = target
        self._seal = seal

    def expand(self, found: dict[str, beam.PCollection[Any]]) -> beam.PCollection[Manifest]:
        """`found` holds `files`: (kind, name); `counts`: (name, number), to be summed; others are passed to `seal` as lists."""
        files, counts = found.pop("files"), found.pop("counts")
        return (
            files.pipeline
            | "End" >> beam.Create([None])
            | "Check and commit"
            >> beam.Map(
                self._commit,
                AsList(files),
                AsDict(counts | "Sum" >> beam.CombinePerKey(sum)),
                **{name: AsList(others) for name, others in found.items()},
            )
        )

    # Beam would take the annotation of the keyword arguments for that of one, and refuse when there are none.
    @no_annotations
    def _commit(self, _: None, files: list[tuple[str, str]], found: dict[str, int], **others: list[Any]) -> Manifest:
        counts, parameters = self._seal(found, **others)
        by_kind: dict[str, list[str]] = {}
        for kind, name in sorted(files):
            by_kind.setdefault(kind, []).append(name)
        target = self._target
        return target.lake.commit(
            Manifest(
                dataset=target.dataset,
                window=target.window.name,
                files=by_kind,
                counts=counts,
                image_root=target.image_root,
                parameters=parameters,
                created_at=datetime.now(UTC),
            )
        )


class MostCommon(beam.PTransform):
    """Elements → one list of the most common ones, with their counts."""

    def expand(self, elements: beam.PCollection[str]) -> beam.PCollection[list[tuple[str, int]]]:
        counted = elements | "Count each" >> beam.combiners.Count.PerElement()
        return counted | "Most" >> beam.combiners.Top.Of(_NAMED_REASONS, key=lambda counted: counted[1])


def count_as(elements: beam.PCollection[Any], name: str) -> beam.PCollection[tuple[str, int]]:
    """Elements → (name, 1) for each, to be summed."""
    return elements | f"Count {name}" >> beam.Map(lambda _: (name, 1))
