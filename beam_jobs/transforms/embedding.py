"""From listings to rows of the embeddings table: compared with what the table holds, and embedded if necessary.

Only the newest version of each item is considered. Versions that the table already has, or has superseded, need no work; sold
and deleted listings need no photo; an unchanged photo keeps its embedding. The rest are decoded and encoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import AsDict, TaggedOutput
from apache_beam.utils.windowed_value import WindowedValue

from beam_jobs.transforms.image_loader import Unusable
from beam_jobs.transforms.merging import Stage, Staged, StageItems
from beam_jobs.transforms.newest import KeepNewest
from beam_jobs.transforms.photo_embedder import PhotoEmbedder, seen_in
from beam_jobs.transforms.pinned_encoder import pinned_encoder
from beam_jobs.transforms.tables import ReadItems
from beam_jobs.transforms.windows import at_the_end
from listing_lens import progress
from listing_lens.embedding.sources import encoder_runtime
from listing_lens.images.source import ImageSource
from listing_lens.lake.dead_letters import Letter
from listing_lens.lake.embeddings import Embedded, Embeddings, Item
from listing_lens.lake.pins import Pin, Pins
from listing_lens.lake.records import Listing
from listing_lens.lake.tables import Place, places_of
from listing_lens.lake.window import Window
from listing_lens.lake.windows import Lake
from listing_lens.settings import Settings
from models.encoders.encoder import Encoder, shared_encoder
from models.encoders.runtime import Runtime

# Outcomes for the newest version of an item: its photo was embedded; the same bytes had been embedded before; it is sold or
# deleted; the table already holds this version; or a newer one; it became a dead letter.
OUTCOMES = ("embedded", "reused", "removed", "unchanged", "overtaken", "dead_lettered")
_KNOWN = ["item_id", "version", "photo", "backend", "embedding"]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A listing version, the window in which it is counted, and the number of earlier attempts."""

    listing: Listing
    window: Window
    attempts: int = 0


@dataclass(frozen=True)
class Known:
    """What the table holds for an item."""

    version: int
    embedded: Embedded | None


@dataclass(frozen=True)
class Embedding:
    """How listings are embedded, with which encoder, and where the result goes.

    Attributes:
        pin: the backend that the space is computed in; None is float32.
        cache: a folder of each host, for what the backend computes by.
        version: the version of the table that listings are compared with; None when there is no table yet.
        now: when the run began; recorded as the time of every failure.
        expected: approximate number of listings, for progress.
    """

    stage: Stage
    version: int | None
    encoder_source: str
    batch_size: int
    runtime: Runtime
    pin: Pin | None
    cache: Path
    images: ImageSource
    now: datetime
    expected: int

    @property
    def embeddings(self) -> Embeddings:
        return self.stage.embeddings

    @property
    def places(self) -> list[Place]:
        """The fragments of the table that listings are compared with."""
        return places_of(self.embeddings.items, self.version)

    @classmethod
    def configure(
        cls,
        lake: Lake,
        encoder_source: str,
        image_roots: Sequence[str],
        expected: int,
        settings: Settings,
        now: datetime,
    ) -> Embedding:
        """A new run.

        Args:
            lake: where listings are read and embeddings are written.
            encoder_source: the resolved source, from `listing_lens.embedding.sources.resolve_encoder`.
            image_roots: base addresses of relative image addresses: photos below them may be read.
            expected: approximate number of listings.
            settings: how encoders run, and which photos may be read.
            now: the current time, timezone-aware.

        Raises:
            LensError: the encoder cannot be loaded, or the table has embeddings of a different dimension.
        """
        runtime = encoder_runtime(settings)
        # The GPUs are left to the workers.
        encoder = shared_encoder(encoder_source, replace(runtime, device="cpu"))
        embeddings = Embeddings(lake, encoder.encoder_id)
        schema = embeddings.schema(encoder.dims, settings.embedding_dtype)
        return cls(
            stage=Stage(embeddings, Lake.new_attempt(now), schema),
            version=embeddings.items.version(),
            encoder_source=encoder.source,
            batch_size=settings.encoder_batch_size,
            runtime=runtime,
            pin=Pins(embeddings).get(),
            cache=settings.cache / "backends",
            images=ImageSource.of(settings).allowing(image_roots),
            now=now,
            expected=expected,
        )


def embed_newest(arrivals: beam.PCollection[Arrival], embedding: Embedding) -> Staged:
    """`Arrival`s → the newest version of each item, embedded and staged."""
    kept = (
        arrivals
        | "Key by item" >> beam.WithKeys(lambda arrival: arrival.listing.item_id)
        | "Keep the newest" >> beam.CombinePerKey(keep_newest())
    )
    newest = kept | "Newest" >> beam.MapTuple(lambda item_id, best: (item_id, best[0]))
    older = kept | "Older ones" >> beam.FlatMapTuple(lambda _, best: best[1].items())
    versions = newest | "Versions" >> beam.MapTuple(lambda item_id, arrival: (item_id, arrival.listing.version))
    known = (
        versions
        | "Look up" >> ReadItems(embedding.embeddings.items, embedding.places, _KNOWN)
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
        | "Embed" >> beam.ParDo(EmbedPhotos(embedding)).with_outputs("letters", "counts", "hosts", main="items")
    )
    paths = (
        (compared.removed, embedded.items)
        | "All items" >> beam.Flatten()
        | "Stage" >> beam.ParDo(StageItems(embedding.stage))
    )
    counts = (
        older | "Count older" >> beam.MapTuple(lambda window, count: ((window, "older"), count)),
        newest | "Count newest" >> beam.MapTuple(lambda _, arrival: ((arrival.window.name, "newest"), 1)),
        compared.counts,
        embedded.counts,
    ) | "All counts" >> beam.Flatten()
    hosts = embedded.hosts | "Each host" >> beam.Distinct()
    return Staged(paths, embedded.letters, counts, hosts)


def keep_newest() -> KeepNewest:
    """`Arrival`s of an item → the newest, and the number of older ones by window name."""
    return KeepNewest(_rank, lambda arrival: arrival.window.name)


def _rank(arrival: Arrival) -> tuple[int, str, Window]:
    """The version; the whole record breaks remaining ties, so that a rerun keeps the same one."""
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
            # A row that is not older than the listing will not be replaced: its embedding is not needed.
            if version < versions[item_id] and photo is not None:
                embedded = Embedded(numbers[row].copy(), photo, backend)
            row += 1
        yield item_id, Known(version, embedded)


def _compare(
    joined: tuple[str, Mapping[str, Iterable[Any]]],
) -> Iterator[tuple[Arrival, Embedded | None] | TaggedOutput]:
    """An item's newest arrival and its row in the table → what has to be done."""
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
    """(`Arrival`, its previous embedding or None) → `Item`s; unusable photos → `Letter`s.

    Photos are prefetched ahead of the model and encoded in full batches, except for the last batch of a bundle.
    """

    def __init__(self, embedding: Embedding) -> None:
        self._embedding = embedding

    def setup(self) -> None:
        embedding = self._embedding
        self._encoder = pinned_encoder(
            embedding.encoder_source,
            embedding.embeddings,
            embedding.runtime,
            embedding.batch_size,
            embedding.pin,
            embedding.cache,
        )
        reference: Encoder = self._encoder.reference
        self._photos: PhotoEmbedder[tuple[Arrival, Embedded | None]] = PhotoEmbedder(
            embedding.images,
            reference,
            self._encoder.encode_by,
            embedding.batch_size,
            seen_in(embedding.stage.attempt, reference.dims),
        )

    def start_bundle(self) -> None:
        # Discard what a failed bundle left behind.
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
            yield at_the_end(TaggedOutput("hosts", self._encoder.host.model_dump_json()))

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
