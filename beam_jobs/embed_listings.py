"""Embed the listings of one window: lake → decode → encode → lake.

Every listing version that was updated in the window is read; the newest of each item is kept. Those that can be found
by searching are embedded; those sold or deleted are kept without an embedding, so that an index learns of it. An image
that cannot be used is set aside with its reason, alone. The window appears in the lake at the end, or not at all.

    python -m beam_jobs.embed_listings --window_start 2026-01-31T00:00:00Z --window_end 2026-02-01T00:00:00Z
    python -m beam_jobs.embed_listings --each_landed --encoder models:/listing-encoder@candidate
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import AsDict, AsList, AsSingleton, TaggedOutput
from apache_beam.utils.windowed_value import WindowedValue
from numpy.typing import NDArray

from beam_jobs.calibrated_encoder import calibrated_encoder
from beam_jobs.image_loader import Unusable
from beam_jobs.lake_io import (
    WindowTarget,
    WriteFiles,
    WriteRecords,
    at_the_end,
    commit,
    listings_in,
    require_few_dead_letters,
)
from beam_jobs.launcher import add_window, launch, optional_window, parser, pipeline_options
from beam_jobs.photo_embedder import PhotoEmbedder, seen_in
from listing_lens import progress
from listing_lens.encoders import encoder_runtime, resolve_encoder, windows_not_embedded
from listing_lens.errors import LensError
from listing_lens.images.source import ImageSource
from listing_lens.lake.records import (
    DEAD_LETTER_SCHEMA,
    LISTING_SCHEMA,
    DeadLetter,
    EmbeddingDtype,
    Listing,
    embedding_schema,
    embeddings_table,
    newest,
)
from listing_lens.lake.window import Window
from listing_lens.lake.windows import DEAD_LETTERS, LISTINGS, REMOVED, ROWS, Lake, Manifest, embeddings
from listing_lens.settings import load_settings
from models.encoders.encoder import shared_encoder
from models.encoders.files import identify
from models.encoders.runtime import Runtime

logger = logging.getLogger(__name__)

# What a manifest counts: `read` listing versions, of which the `newest` of each item, which are the next three; and how
# many photos the model `encoded`: the same bytes are encoded once.
COUNTS = ("read", "newest", "embedded", "removed", "dead_lettered", "encoded")
# Reasons for dead letters that a refusal names.
_NAMED_REASONS = 3


@dataclass(frozen=True)
class Config:
    """One run: which window, by which encoder, from and to which lake."""

    lake: Lake
    window: Window
    encoder_source: str
    encoder_id: str
    dims: int
    dtype: EmbeddingDtype
    batch_size: int
    runtime: Runtime
    calibrations: Path
    images: ImageSource
    max_dead_letter_ratio: float
    landed: tuple[Window, ...]
    expected: int

    def new_target(self) -> WindowTarget:
        """The window to write, as a new attempt."""
        return WindowTarget(self.lake, embeddings(self.encoder_id), self.window)


def run(landed: beam.PCollection, config: Config) -> beam.PCollection:
    """Windows of listings that have landed → the manifest of the window that was embedded."""
    target = config.new_target()
    listings = (
        landed
        | "Spread windows" >> beam.Reshuffle()
        | "Read listings" >> beam.FlatMap(lambda part: listings_in(config.lake, part, config.window))
    )
    newest_ones = (
        listings
        | "Key by item" >> beam.WithKeys(lambda listing: listing.item_id)
        | "Keep the newest" >> beam.CombinePerKey(newest)
        | "Drop keys" >> beam.Values()
    )
    searchable = newest_ones | "Searchable" >> beam.Filter(lambda listing: listing.searchable)
    removed = newest_ones | "Removed" >> beam.Filter(lambda listing: not listing.searchable)
    embedded = (
        searchable
        | "Spread listings" >> beam.Reshuffle()
        | "Embed"
        >> beam.ParDo(Embed(config, target.attempt)).with_outputs("dead", "encoded", "calibrations", main="tables")
    )
    files = (
        embedded.tables | "Write" >> beam.ParDo(WriteFiles(target, ROWS, embedding_schema(config.dims, config.dtype))),
        removed | WriteRecords(target, REMOVED, LISTING_SCHEMA),
        embedded.dead | WriteRecords(target, DEAD_LETTERS, DEAD_LETTER_SCHEMA),
    ) | "All files" >> beam.Flatten()
    counts = (
        (
            listings | "Count read" >> beam.Map(lambda _: ("read", 1)),
            newest_ones | "Count newest" >> beam.Map(lambda _: ("newest", 1)),
            removed | "Count removed" >> beam.Map(lambda _: ("removed", 1)),
            embedded.dead | "Count dead" >> beam.Map(lambda _: ("dead_lettered", 1)),
            embedded.tables | "Count embedded" >> beam.Map(lambda table: ("embedded", len(table))),
            embedded.encoded | "Count encoded" >> beam.Map(lambda photos: ("encoded", photos)),
        )
        | "All counts" >> beam.Flatten()
        | "Sum" >> beam.CombinePerKey(sum)
    )
    reasons = (
        embedded.dead
        | "Reasons" >> beam.Map(lambda letter: letter.reason)
        | "Count reasons" >> beam.combiners.Count.PerElement()
        | "Most common" >> beam.combiners.Top.Of(_NAMED_REASONS, key=lambda counted: counted[1])
    )
    return (
        landed.pipeline
        | "Finish" >> beam.Create([None])
        | "Check and commit"
        >> beam.Map(
            _check_and_commit,
            AsList(files),
            AsDict(counts),
            AsSingleton(reasons),
            AsList(embedded.calibrations | "Each host" >> beam.Distinct()),
            config=config,
            target=target,
        )
    )


class Embed(beam.DoFn):
    """Listings → tables with their embeddings; unusable photos → dead letters; how many photos the model encoded.

    Photos are loaded ahead of the model and encoded in full batches, whatever the bundles' sizes up to their ends.
    """

    def __init__(self, config: Config, run: str) -> None:
        self._config = config
        self._run = run

    def setup(self) -> None:
        config = self._config
        self._encoder = calibrated_encoder(
            config.encoder_source, config.encoder_id, config.runtime, config.batch_size, config.calibrations
        )
        reference = self._encoder.reference
        self._photos: PhotoEmbedder[Listing] = PhotoEmbedder(
            config.images, reference, self._encoder.encode, config.batch_size, seen_in(self._run, reference.dims)
        )

    def start_bundle(self) -> None:
        # What a bundle that failed had added belongs to nobody.
        self._photos.clear()
        self._encoded = self._photos.encoded

    def process(self, listing: Listing) -> Iterator[pa.Table | TaggedOutput]:
        yield from self._outputs(self._photos.add(listing, listing.image_uri))

    def finish_bundle(self) -> Iterator[WindowedValue | TaggedOutput]:
        for output in self._outputs(self._photos.flush()):
            yield at_the_end(output)
        yield at_the_end(TaggedOutput("encoded", self._photos.encoded - self._encoded))
        if self._encoder.calibration:
            yield at_the_end(TaggedOutput("calibrations", self._encoder.calibration.model_dump_json()))

    def _outputs(
        self, results: Iterator[tuple[Listing, NDArray[np.float32] | Unusable]]
    ) -> Iterator[pa.Table | TaggedOutput]:
        usable, vectors, tried = [], [], 0
        for listing, result in results:
            tried += 1
            if isinstance(result, Unusable):
                yield TaggedOutput("dead", DeadLetter(listing.item_id, result.stage, result.reason))
            else:
                usable.append(listing)
                vectors.append(result)
        if usable:
            yield embeddings_table(usable, np.stack(vectors), self._config.dtype)
        if tried:
            progress.advance(f"embedded {self._config.window.start:%Y-%m-%d %H:%M}", tried, self._config.expected)

    def teardown(self) -> None:
        self._photos.clear()


def _check_and_commit(
    _: None,
    files: list[tuple[str, str]],
    counts: dict[str, int],
    reasons: list[tuple[str, int]],
    calibrations: list[str],
    *,
    config: Config,
    target: WindowTarget,
) -> Manifest:
    """Commit the window unless listings went missing or too many were set aside."""
    counts = dict.fromkeys(COUNTS, 0) | counts
    accounted = counts["embedded"] + counts["removed"] + counts["dead_lettered"]
    if accounted != counts["newest"]:
        raise LensError(f"window {config.window}: {counts['newest']} listings went in, {accounted} came out: {counts}")
    tried = counts["embedded"] + counts["dead_lettered"]
    require_few_dead_letters(config.window, counts["dead_lettered"], tried, reasons, config.max_dead_letter_ratio)
    parameters = {
        "encoder_source": config.encoder_source,
        "encoder_id": config.encoder_id,
        "dims": config.dims,
        "embedding_dtype": config.dtype,
        # How the hosts that took part computed; none, or too few images to choose by, is float32.
        "calibrations": [json.loads(calibration) for calibration in sorted(calibrations)],
    }
    manifest = commit(target, files, counts, parameters)
    logger.info("window %s of %s is complete: %s", config.window, target.dataset, counts)
    return manifest


def configure(window: Window, encoder_source: str | None = None) -> Config:
    """Check what the run depends on, before it starts.

    Raises:
        LensError: listings of the window have not landed, the encoder is unknown, the lake is out of reach.
    """
    settings = load_settings()
    lake = Lake(settings.lake)
    lake.check()
    landed = lake.covering(LISTINGS, window)
    runtime = encoder_runtime(settings)
    # The GPUs are the workers'.
    encoder = shared_encoder(resolve_encoder(encoder_source, settings), replace(runtime, device="cpu"))
    return Config(
        lake=lake,
        window=window,
        encoder_source=encoder.source,
        encoder_id=encoder.encoder_id,
        dims=encoder.dims,
        dtype=settings.embedding_dtype,
        batch_size=settings.encoder_batch_size,
        runtime=runtime,
        calibrations=settings.cache / "calibrations",
        images=ImageSource.of(settings).allowing(lake.image_roots(LISTINGS, landed)),
        max_dead_letter_ratio=settings.max_dead_letter_ratio,
        landed=tuple(landed),
        expected=sum(lake.manifest(LISTINGS, part).counts["rows"] for part in landed),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the pipeline to its end, once or once a window."""
    arguments = parser(__doc__)
    add_window(arguments, required=False)
    arguments.add_argument("--encoder", metavar="SOURCE", help="the encoder (default: LENS_ENCODER)")
    arguments.add_argument(
        "--each_landed",
        action="store_true",
        help="embed every landed window of listings in between that is not embedded yet, one after the other; "
        "all that have landed when no window is given",
    )
    known, beam_arguments = arguments.parse_known_args(argv)
    settings = load_settings()
    window = optional_window(known)
    # An alias may move while the windows are embedded: they are all of the encoder that it names now.
    source = resolve_encoder(known.encoder, settings)
    if known.each_landed:
        windows = _not_embedded(window, source)
    elif window:
        windows = [window]
    else:
        arguments.error("--window_start and --window_end are required without --each_landed")
    for part in windows:
        config = configure(part, source)
        with beam.Pipeline(options=pipeline_options(settings, beam_arguments)) as pipeline:
            run(pipeline | "Landed windows" >> beam.Create(config.landed), config)


def _not_embedded(window: Window | None, encoder_source: str) -> list[Window]:
    lake = Lake(load_settings().lake)
    lake.check()
    encoder = identify(encoder_source)
    windows = windows_not_embedded(lake, encoder, window)
    logger.info("%d landed windows of listings are not embedded by %s yet", len(windows), encoder)
    return windows


if __name__ == "__main__":
    launch(main)
