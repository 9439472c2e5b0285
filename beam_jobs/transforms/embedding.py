"""Listings on their way into the table of embeddings: compared with what is there, embedded where need be, staged, merged.

Of each item the newest version goes on. What the table holds already, or holds newer, needs no work; what was sold or deleted
needs no photo; a photo that did not change keeps its embedding. The rest is decoded and encoded. Rows are staged as files and
merged in one commit, so that readers see all of a run or nothing.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import AsDict, AsList, AsSingleton, TaggedOutput
from apache_beam.utils.windowed_value import WindowedValue

from beam_jobs.transforms.calibrated_encoder import calibrated_encoder
from beam_jobs.transforms.image_loader import Unusable
from beam_jobs.transforms.photo_embedder import PhotoEmbedder, seen_in
from beam_jobs.transforms.tables import ReadItems
from beam_jobs.transforms.windows import MostCommon, at_the_end
from listing_lens import progress
from listing_lens.images.source import ImageSource
from listing_lens.lake.dead_letters import DeadLetters, Letter
from listing_lens.lake.embeddings import NEWER, Embedded, Embeddings, Item, item_batch
from listing_lens.lake.records import Listing
from listing_lens.lake.staging import StagedFile, read_staged
from listing_lens.lake.tables import Merged
from listing_lens.lake.window import Window
from models.encoders.encoder import Encoder
from models.encoders.runtime import Runtime

logger = logging.getLogger(__name__)

# What becomes of the newest version of an item: its photo was embedded, or its bytes had been; it needs none; the table holds
# this version, or a newer one; it was set aside.
OUTCOMES = ("embedded", "reused", "removed", "unchanged", "overtaken", "dead_lettered")
# Rows that are staged together: a batch of the files that are merged.
_BATCH_ROWS = 1024
_KNOWN = ["item_id", "version", "photo", "backend", "embedding"]

# A window by its name and what is counted of it, and how many.
Counted = tuple[tuple[str, str], int]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A listing version, the window that counts it, and how often it was tried before."""

    listing: Listing
    window: Window
    attempts: int = 0


@dataclass(frozen=True)
class Known:
    """What the table holds of an item."""

    version: int
    embedded: Embedded | None


@dataclass(frozen=True)
class Embedding:
    """How listings are embedded, by which encoder, and where to.

    Attributes:
        attempt: the name of the run.
        folder: where it stages what is merged together.
        version: of the table, which listings are compared with; None when there is none.
        schema: of the table.
        now: when the run began; a listing that fails failed then.
        expected: about how many listings there are, for the progress.
    """

    embeddings: Embeddings
    attempt: str
    folder: str
    version: int | None
    schema: pa.Schema
    encoder_source: str
    batch_size: int
    runtime: Runtime
    calibrations: Path
    images: ImageSource
    now: datetime
    expected: int


@dataclass(frozen=True)
class Staged:
    """What became of arrivals, as PCollections: paths of staged files, `Letter`s, `Counted`, and calibrations as JSON."""

    paths: beam.PCollection
    letters: beam.PCollection
    counts: beam.PCollection
    calibrations: beam.PCollection


def embed_newest(arrivals: beam.PCollection, embedding: Embedding) -> Staged:
    """`Arrival`s → the newest version of each item, embedded and staged."""
    kept = (
        arrivals
        | "Key by item" >> beam.WithKeys(lambda arrival: arrival.listing.item_id)
        | "Keep the newest" >> beam.CombinePerKey(KeepNewest())
    )
    newest = kept | "Newest" >> beam.MapTuple(lambda item_id, best: (item_id, best[0]))
    older = kept | "Older ones" >> beam.FlatMapTuple(lambda _, best: best[1].items())
    versions = newest | "Versions" >> beam.MapTuple(lambda item_id, arrival: (item_id, arrival.listing.version))
    known = (
        versions
        | "Look up" >> ReadItems(embedding.embeddings.items, embedding.version, _KNOWN)
        | "Known" >> beam.FlatMap(_known, AsDict(versions))
    )
    compared = (
        {"arrivals": newest, "known": known}
        | "Bring together" >> beam.CoGroupByKey()
        | "Compare" >> beam.ParDo(_compare).with_outputs("counts", "removed", main="to_embed")
    )
    embedded = (
        compared.to_embed
        | "Spread listings" >> beam.Reshuffle()
        | "Embed" >> beam.ParDo(EmbedPhotos(embedding)).with_outputs("letters", "counts", "calibrations", main="items")
    )
    paths = (
        (compared.removed, embedded.items)
        | "All items" >> beam.Flatten()
        | "Stage" >> beam.ParDo(StageItems(embedding))
    )
    counts = (
        older | "Count older" >> beam.MapTuple(lambda window, count: ((window, "older"), count)),
        newest | "Count newest" >> beam.MapTuple(lambda _, arrival: ((arrival.window.name, "newest"), 1)),
        compared.counts,
        embedded.counts,
    ) | "All counts" >> beam.Flatten()
    calibrations = embedded.calibrations | "Each host" >> beam.Distinct()
    return Staged(paths, embedded.letters, counts, calibrations)


class KeepNewest(beam.CombineFn):
    """Arrivals of one item → the newest, and how many older ones there were by window."""

    def create_accumulator(self) -> tuple[Arrival | None, Counter[str]]:
        return None, Counter()

    def add_input(
        self, kept: tuple[Arrival | None, Counter[str]], arrival: Arrival
    ) -> tuple[Arrival | None, Counter[str]]:
        return self.merge_accumulators([kept, (arrival, Counter())])

    def merge_accumulators(
        self, accumulators: Iterable[tuple[Arrival | None, Counter[str]]]
    ) -> tuple[Arrival | None, Counter[str]]:
        best: Arrival | None = None
        older: Counter[str] = Counter()
        for arrival, counted in accumulators:
            older += counted
            if arrival is None:
                continue
            if best is None:
                best = arrival
                continue
            best, loser = (arrival, best) if _rank(arrival) > _rank(best) else (best, arrival)
            older[loser.window.name] += 1
        return best, older

    def extract_output(self, kept: tuple[Arrival | None, Counter[str]]) -> tuple[Arrival | None, Counter[str]]:
        return kept


def _rank(arrival: Arrival) -> tuple[int, str, Window]:
    """The whole record breaks what ties are left, so that a rerun keeps the same one."""
    return arrival.listing.version, repr(arrival.listing), arrival.window


def _known(batch: pa.RecordBatch, versions: Mapping[str, int]) -> Iterator[tuple[str, Known]]:
    embeddings = batch.column("embedding")
    width = embeddings.type.list_size
    numbers = embeddings.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    row = 0
    columns = (batch.column(name).to_pylist() for name in ("item_id", "version", "photo", "backend"))
    for present, item_id, version, photo, backend in zip(embeddings.is_valid().to_pylist(), *columns, strict=True):
        embedded = None
        if present:
            # What is not older than the listing keeps its embedding without being asked for it.
            if version < versions[item_id] and photo is not None:
                embedded = Embedded(numbers[row].copy(), photo, backend)
            row += 1
        yield item_id, Known(version, embedded)


def _compare(
    joined: tuple[str, Mapping[str, Iterable[Any]]],
) -> Iterator[tuple[Arrival, Embedded | None] | TaggedOutput]:
    """An item's newest arrival and what the table holds → what is to be done."""
    _, group = joined
    [arrival], known = list(group["arrivals"]), next(iter(group["known"]), None)
    listing: Listing = arrival.listing
    if known is not None and known.version >= listing.version:
        outcome = "unchanged" if known.version == listing.version else "overtaken"
        yield TaggedOutput("counts", ((arrival.window.name, outcome), 1))
    elif not listing.searchable:
        yield TaggedOutput("counts", ((arrival.window.name, "removed"), 1))
        yield TaggedOutput("removed", Item(listing, arrival.window, None))
    else:
        yield arrival, known and known.embedded


class EmbedPhotos(beam.DoFn):
    """(`Arrival`, the embedding that it had or None) → `Item`s; unusable photos → `Letter`s.

    Photos are loaded ahead of the model and encoded in full batches, whatever the bundles' sizes up to their ends.
    """

    def __init__(self, embedding: Embedding) -> None:
        self._embedding = embedding

    def setup(self) -> None:
        embedding = self._embedding
        self._encoder = calibrated_encoder(
            embedding.encoder_source,
            embedding.embeddings.encoder_id,
            embedding.runtime,
            embedding.batch_size,
            embedding.calibrations,
        )
        reference: Encoder = self._encoder.reference
        self._photos: PhotoEmbedder[tuple[Arrival, Embedded | None]] = PhotoEmbedder(
            embedding.images,
            reference,
            self._encoder.encode_by,
            embedding.batch_size,
            seen_in(embedding.attempt, reference.dims),
        )

    def start_bundle(self) -> None:
        # What a bundle that failed had added belongs to nobody.
        self._photos.clear()
        self._encoded = self._photos.encoded
        self._window: Window | None = None

    def process(self, element: tuple[Arrival, Embedded | None]) -> Iterator[Item | TaggedOutput]:
        arrival, known = element
        self._window = arrival.window
        yield from self._outputs(self._photos.add(element, arrival.listing.image_uri, known))

    def finish_bundle(self) -> Iterator[WindowedValue | TaggedOutput]:
        for output in self._outputs(self._photos.flush()):
            yield at_the_end(output)
        if self._window is not None:
            yield at_the_end(
                TaggedOutput("counts", ((self._window.name, "encoded"), self._photos.encoded - self._encoded))
            )
        if self._encoder.calibration:
            yield at_the_end(TaggedOutput("calibrations", self._encoder.calibration.model_dump_json()))

    def _outputs(
        self, results: Iterator[tuple[tuple[Arrival, Embedded | None], Embedded | Unusable]]
    ) -> Iterator[Item | TaggedOutput]:
        tried = 0
        for (arrival, known), result in results:
            tried += 1
            if isinstance(result, Unusable):
                outcome = "dead_lettered"
                yield TaggedOutput("letters", self._letter(arrival, result))
            else:
                outcome = "reused" if result is known else "embedded"
                yield Item(arrival.listing, arrival.window, result)
            yield TaggedOutput("counts", ((arrival.window.name, outcome), 1))
        if tried:
            progress.advance("embedded", tried, self._embedding.expected)

    def _letter(self, arrival: Arrival, unusable: Unusable) -> Letter:
        return Letter.of_listing(
            arrival.listing,
            arrival.window,
            unusable.stage,
            unusable.reason,
            transient=unusable.transient,
            attempts=arrival.attempts + 1,
            now=self._embedding.now,
        )

    def teardown(self) -> None:
        self._photos.clear()


class StageItems(beam.DoFn):
    """`Item`s → paths of the staged files that hold them, one file a bundle.

    A file of a bundle that is tried again stays behind unnamed, and goes with its folder.
    """

    def __init__(self, embedding: Embedding) -> None:
        self._embedding = embedding

    def start_bundle(self) -> None:
        self._file: StagedFile | None = None
        self._items: list[Item] = []

    def process(self, item: Item) -> None:
        self._items.append(item)
        if len(self._items) >= _BATCH_ROWS:
            self._write()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._items:
            self._write()
        if self._file is not None:
            self._file.close()
            yield at_the_end(self._file.path)

    def _write(self) -> None:
        if self._file is None:
            self._file = StagedFile(self._embedding.embeddings.lake, self._embedding.folder, self._embedding.schema)
        self._file.write(item_batch(self._items, self._embedding.schema))
        self._items = []


@dataclass(frozen=True)
class Summary:
    """What is kept of a run: counts by the names of windows, and how its hosts computed."""

    counts: Mapping[str, Mapping[str, int]]
    calibrations: tuple[Mapping[str, Any], ...]

    def total(self) -> Counter[str]:
        """The counts of all windows together."""
        total: Counter[str] = Counter()
        for counts in self.counts.values():
            total.update(counts)
        return total


@dataclass(frozen=True)
class Outcome:
    """What a run amounts to, once all of it is staged."""

    paths: tuple[str, ...]
    letters: tuple[Letter, ...]
    # By the name of the window.
    counts: Mapping[str, Mapping[str, int]]
    # The commonest reasons of the letters, and how often each is given.
    reasons: tuple[tuple[str, int], ...]
    calibrations: tuple[Mapping[str, Any], ...]

    @property
    def summary(self) -> Summary:
        """What is kept of it."""
        return Summary(self.counts, self.calibrations)


def outcome_of(pipeline: beam.Pipeline, staged: Staged) -> beam.PCollection:
    """What became of arrivals → one `Outcome`, at the end."""
    reasons = staged.letters | "Reasons" >> beam.Map(lambda letter: letter.reason) | "Commonest" >> MostCommon()
    return (
        pipeline
        | "End" >> beam.Create([None])
        | "Outcome"
        >> beam.Map(
            _outcome,
            AsList(staged.paths),
            AsList(staged.letters),
            AsDict(staged.counts | "Sum" >> beam.CombinePerKey(sum)),
            AsSingleton(reasons),
            AsList(staged.calibrations),
        )
    )


def _outcome(
    _: None,
    paths: list[str],
    letters: list[Letter],
    counted: dict[tuple[str, str], int],
    reasons: list[tuple[str, int]],
    calibrations: list[str],
) -> Outcome:
    counts: dict[str, dict[str, int]] = {}
    for (window, name), count in counted.items():
        counts.setdefault(window, {})[name] = count
    hosts = tuple(json.loads(calibration) for calibration in sorted(calibrations))
    return Outcome(tuple(sorted(paths)), tuple(letters), counts, tuple(reasons), hosts)


def merge(outcome: Outcome, embedding: Embedding) -> Merged:
    """Bring a run into the table, in one commit; keep its dead letters, and settle those that its rows answer.

    It may be repeated: rows that are in the table already change nothing.
    """
    embeddings, lake = embedding.embeddings, embedding.embeddings.lake
    merged = embeddings.items.merge(embedding.schema, read_staged(lake, outcome.paths), newer=NEWER)
    letters = DeadLetters(embeddings)
    letters.add(outcome.letters)
    versions: dict[str, int] = {}
    if letters.table.exists():
        for batch in read_staged(lake, outcome.paths, ["item_id", "version"]):
            versions |= dict(zip(*(column.to_pylist() for column in batch.columns), strict=True))
    settled = letters.settle(versions)
    lake.remove_folder(embedding.folder)
    logger.info(
        "%s: %d items are new, %d replaced, in version %d; %d dead letters are new, %d settled",
        embeddings.items.path,
        merged.inserted,
        merged.updated,
        merged.version,
        len(outcome.letters),
        settled,
    )
    return merged
