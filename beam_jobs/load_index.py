"""Load indexes: the lake's embeddings → projected to each index's own space → Elasticsearch.

An index names its space, and the job projects with that one: vectors of another space cannot get in. Documents carry
the listing's `updated_at` as an external version, so windows load in any order and a load can be repeated.

With --index, one index is loaded: how a rebuild fills it. Without, every index there is, each from the embeddings of its
own encoder: the live one, one being built, and those kept for rollback, so that whichever the alias points to next lacks
nothing. The live index must get a window; another one whose encoder has not embedded it is passed over, with a word in
the log: a rebuild that has just begun embeds it itself.

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
from listing_lens.encoders import resolve_encoder
from listing_lens.errors import LensError
from listing_lens.lake.fits import load_projection
from listing_lens.lake.records import embedding_matrix, listings_of
from listing_lens.lake.window import Window, gaps
from listing_lens.lake.windows import REMOVED, ROWS, Lake, embeddings
from listing_lens.loads import Load, loaded_windows, record_load
from listing_lens.search.index import Index, SearchIndex
from listing_lens.settings import load_settings
from models.encoders.files import identify

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
        self._projection = load_projection(
            self._config.lake, self._index.card.projection_id, self._index.card.encoder_id
        )
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


def configure(
    index_name: str | None, within: Window | None, *, encoder_source: str | None = None, catch_up: bool = False
) -> list[Config]:
    """Find the indexes and the windows to load: one load an encoder, none where there is nothing to load into.

    Args:
        index_name: the index to load; None is every index there is, each from its own encoder's embeddings.
        within: the window to load; None is all.
        encoder_source: only indexes of this encoder.
        catch_up: only windows that landed, or changed, since the index was loaded.

    Raises:
        LensError: an index, its projection, the encoder, the lake or the cluster cannot be found; or the window is not
            embedded by the encoder of the index that was asked for, or of the live one.
    """
    settings = load_settings()
    lake = Lake(settings.lake)
    lake.check()
    search_index = SearchIndex.connect(settings)
    # Before the windows are listed: what lands from here on counts as not loaded.
    started_at = datetime.now(UTC)
    required = search_index.get(index_name) if index_name else search_index.live()
    indexes = [required] if index_name and required else search_index.all()
    if encoder_source:
        only = identify(resolve_encoder(encoder_source, settings))
        indexes = [index for index in indexes if index.card.encoder_id == only]
    for index in indexes:
        load_projection(lake, index.card.projection_id, index.card.encoder_id)
    configs = []
    for encoder, of_encoder in _by_encoder(indexes).items():
        dataset = embeddings(encoder)
        windows = lake.windows(dataset, within)
        if within and gaps(within, windows):
            _pass_over(of_encoder, within, required)
            continue
        if catch_up:
            loaded = {window for index in of_encoder for window in loaded_windows(lake, index)}
            windows = [window for window in windows if window not in loaded]
        counts = [lake.manifest(dataset, window).counts for window in windows]
        configs.append(
            Config(
                lake=lake,
                encoder_id=encoder,
                indexes=tuple(of_encoder),
                windows=tuple(windows),
                expected=sum(count["embedded"] + count["removed"] for count in counts) * len(of_encoder),
                started_at=started_at,
                cluster=Cluster.of(settings),
            )
        )
    return configs


def _by_encoder(indexes: Sequence[Index]) -> dict[str, list[Index]]:
    found: dict[str, list[Index]] = {}
    for index in indexes:
        found.setdefault(index.card.encoder_id, []).append(index)
    return found


def _pass_over(indexes: Sequence[Index], window: Window, required: Index | None) -> None:
    """Go on without indexes whose encoder has not embedded a window. Raises LensError when a required one is among them."""
    for index in indexes:
        if index == required:
            raise LensError(
                f"window {window} is not embedded by {index.card.encoder_id}, so index {index.name} would lack it: "
                f"embed it first, with --encoder {index.card.encoder_source}"
            )
        logger.warning("index %s does not get window %s: its encoder has not embedded it", index.name, window)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the pipeline to its end, once an encoder."""
    arguments = parser(__doc__)
    arguments.add_argument("--index", help="the index to load, by its full name (default: every index there is)")
    arguments.add_argument("--encoder", metavar="SOURCE", help="only indexes of this encoder (default: of any)")
    add_window(arguments, required=False)
    arguments.add_argument(
        "--catch_up",
        action="store_true",
        help="load only windows that have landed, or changed, since --index was loaded",
    )
    known, beam_arguments = arguments.parse_known_args(argv)
    if known.catch_up and known.index is None:
        raise LensError("--catch_up goes with --index: it is about what one index lacks")
    configs = configure(known.index, optional_window(known), encoder_source=known.encoder, catch_up=known.catch_up)
    if not configs:
        logger.info("there is no index to load into")
    for config in configs:
        with beam.Pipeline(options=pipeline_options(load_settings(), beam_arguments)) as pipeline:
            run(pipeline | "Windows" >> beam.Create(config.windows), config)


if __name__ == "__main__":
    launch(main)
