"""Load indexes: the lake's embeddings → projected to each index's own space → Elasticsearch.

An index names its space, and the job projects with that one: vectors of another space cannot get in. Documents carry
the listing's `updated_at` as an external version, so windows load in any order and a load can be repeated.

With --index, one index is loaded: how a rebuild fills it. Without, every index of the encoder's embeddings is: the live
one, one being built, and those kept for rollback, so that whichever the alias points to next lacks nothing.

    python -m beam_jobs.load_index --index listings-…
    python -m beam_jobs.load_index --window_start 2026-01-31T00:00:00Z --window_end 2026-02-01T00:00:00Z
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import AsDict
from numpy.typing import NDArray

from beam_jobs.cluster import Cluster
from beam_jobs.lake_io import ReadWindows
from beam_jobs.launcher import add_window, launch, optional_window, parser, pipeline_options
from listing_lens import progress
from listing_lens.errors import LensError
from listing_lens.lake import REMOVED, ROWS, Lake, embeddings
from listing_lens.loads import Load, loaded_windows, record_load
from listing_lens.projections import load_projection
from listing_lens.records import embedding_matrix, listings_of
from listing_lens.search_index import Index, SearchIndex
from listing_lens.settings import load_settings
from listing_lens.window import Window
from models.encoder_files import encoder_folder, encoder_id

logger = logging.getLogger(__name__)

# Rows that are projected and written together.
_BATCH_ROWS = 2000


@dataclass(frozen=True)
class Config:
    """One load: of which windows of an encoder's embeddings, into which indexes."""

    lake: Lake
    encoder_id: str
    indexes: tuple[Index, ...]
    windows: tuple[Window, ...]
    expected: int
    started_at: datetime
    cluster: Cluster


def run(windows: beam.PCollection, config: Config) -> beam.PCollection:
    """Windows of embeddings → a `Load` for each index, once all is written."""
    batches = windows | "Embeddings" >> ReadWindows(
        config.lake, embeddings(config.encoder_id), kinds=(ROWS, REMOVED), batch_rows=_BATCH_ROWS
    )
    counts = (
        [
            batches | f"Project and write {index.name}" >> beam.ParDo(ProjectAndWrite(config, index))
            for index in config.indexes
        ]
        | "All outcomes" >> beam.Flatten()
        | "Sum" >> beam.CombinePerKey(sum)
    )
    return (
        windows.pipeline
        | "Indexes" >> beam.Create(config.indexes)
        | "Report" >> beam.Map(_report, AsDict(counts), config=config)
    )


class ProjectAndWrite(beam.DoFn):
    """A batch of embeddings → ((index, outcome), count) pairs, once the index has taken them."""

    def __init__(self, config: Config, index: Index) -> None:
        self._config = config
        self._index = index

    def setup(self) -> None:
        self._projection = load_projection(self._config.lake, self._index.card.projection_id)
        self._search_index = self._config.cluster.connect()

    def process(self, batch: pa.RecordBatch) -> Iterator[tuple[tuple[str, str], int]]:
        listings = list(listings_of(batch))
        outcome = self._search_index.write(self._index.name, listings, self._vectors(batch))
        for name, count in [("read", len(listings)), *outcome.items()]:
            yield (self._index.name, name), count
        progress.advance("loaded", len(listings), self._config.expected)

    def _vectors(self, batch: pa.RecordBatch) -> Sequence[NDArray[np.float32] | None]:
        if "embedding" not in batch.schema.names:
            return [None] * len(batch)
        return list(self._projection.apply(embedding_matrix(batch)))

    def teardown(self) -> None:
        self._search_index.client.close()


def _report(index: Index, outcomes: dict[tuple[str, str], int], config: Config) -> Load:
    counts = {name: outcomes.get((index.name, name), 0) for name in ("read", "written", "superseded")}
    if counts["read"] != counts["written"] + counts["superseded"]:
        raise LensError(
            f"index {index.name}: {counts['read']} rows went in, but the outcome is {counts}: load it again"
        )
    load = Load(
        index=index.name,
        windows=[window.name for window in config.windows],
        counts=counts,
        started_at=config.started_at,
        finished_at=datetime.now(UTC),
    )
    record_load(config.lake, load)
    logger.info("loaded into %s: %s", index.name, counts)
    return load


def configure(index_name: str | None, within: Window | None, *, catch_up: bool = False) -> Config:
    """Find the indexes and the windows to load.

    Raises:
        LensError: an index, its projection, the lake or the cluster cannot be found; the window has not landed; or the
            live index would be left out, since it is of another encoder.
    """
    settings = load_settings()
    lake = Lake(settings.lake)
    lake.check()
    search_index = SearchIndex.connect(settings)
    # Before the windows are listed: what lands from here on counts as not loaded.
    started_at = datetime.now(UTC)
    if index_name is not None:
        indexes = [search_index.get(index_name)]
        of = indexes[0].card.encoder_id
    else:
        of = encoder_id(settings.encoder, encoder_folder(settings.encoder))
        _require_same_encoder(search_index.live(), of)
        indexes = [index for index in search_index.all() if index.card.encoder_id == of]
    for index in indexes:
        load_projection(lake, index.card.projection_id)
    dataset = embeddings(of)
    windows = lake.windows(dataset) if within is None else lake.covering(dataset, within)
    if catch_up:
        loaded = {window for index in indexes for window in loaded_windows(lake, index)}
        windows = [window for window in windows if window not in loaded]
    counts = [lake.manifest(dataset, window).counts for window in windows]
    return Config(
        lake=lake,
        encoder_id=of,
        indexes=tuple(indexes),
        windows=tuple(windows),
        expected=sum(count["embedded"] + count["removed"] for count in counts) * len(indexes),
        started_at=started_at,
        cluster=Cluster.of(settings),
    )


def _require_same_encoder(live: Index | None, of: str) -> None:
    if live is not None and live.card.encoder_id != of:
        raise LensError(
            f"the live index {live.name} holds vectors of {live.card.encoder_id}, but LENS_ENCODER is {of}: new listings "
            f"would not reach it; set LENS_ENCODER={live.card.encoder_source} until an index of the other is live"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the pipeline to its end."""
    arguments = parser(__doc__)
    arguments.add_argument("--index", help="the index to load, by its full name (default: all of LENS_ENCODER's)")
    add_window(arguments, required=False)
    arguments.add_argument(
        "--catch_up",
        action="store_true",
        help="load only windows that have landed, or changed, since --index was loaded",
    )
    known, beam_arguments = arguments.parse_known_args(argv)
    if known.catch_up and known.index is None:
        raise LensError("--catch_up goes with --index: it is about what one index lacks")
    config = configure(known.index, optional_window(known), catch_up=known.catch_up)
    if not config.indexes:
        logger.info("no index holds embeddings of %s yet: there is nothing to load into", config.encoder_id)
        return
    with beam.Pipeline(options=pipeline_options(load_settings(), beam_arguments)) as pipeline:
        run(pipeline | "Windows" >> beam.Create(config.windows), config)


if __name__ == "__main__":
    launch(main)
