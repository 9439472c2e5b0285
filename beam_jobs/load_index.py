"""Load an index: the newest version of each item → projected to the index's own space → Elasticsearch.

An index names its space, and the job uses that space's projection, so vectors of another space cannot get in. Documents carry
the listing's version as an external version, so rows can be loaded in any order, and a load can be repeated. Loads are
incremental: only the rows that changed since the last load are written, up to the table's version when the job starts.

With --index, only that index is loaded; this is how a rebuild fills it. Whatever is embedded in the meantime is loaded
afterwards, until the index is up to date. Without it, every index that has been filled is loaded, each from its own encoder's
table: the live one, those kept for rollback and one awaiting its swap, so that whichever the alias points to next is complete.
With a window, the live index must receive it: its encoder must have embedded that window.

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

from beam_jobs.launcher import add_window, launch, optional_window, parser, pipeline_options
from beam_jobs.transforms.cluster import Cluster
from beam_jobs.transforms.tables import ReadTable
from listing_lens import progress
from listing_lens.embedding.sources import resolve_encoder, windows_not_embedded
from listing_lens.errors import LensError
from listing_lens.lake.embeddings import Embeddings, with_embedding
from listing_lens.lake.fits import load_projection
from listing_lens.lake.records import LISTING_SCHEMA, listings_of
from listing_lens.lake.tables import changed_since
from listing_lens.lake.window import Window, gaps
from listing_lens.lake.windows import LISTINGS, Lake
from listing_lens.search.index import Index, SearchIndex
from listing_lens.search.loads import Load, loaded_version, record_load
from listing_lens.settings import load_settings
from models.encoders.files import identify

logger = logging.getLogger(__name__)

# Rows projected and written together.
_BATCH_ROWS = 2000
_COLUMNS = [*LISTING_SCHEMA.names, "embedding"]


@dataclass(frozen=True)
class Config:
    """One load: which rows of an encoder's table, into which index.

    Attributes:
        since, version: load the rows that changed after version `since`, as they are in version `version`.
        expected: number of those rows.
    """

    embeddings: Embeddings
    index: Index
    since: int
    version: int
    expected: int
    started_at: datetime
    cluster: Cluster


def run(pipeline: beam.Pipeline, config: Config) -> beam.PCollection[Load]:
    """The changed rows → the `Load`, once all of them are written."""
    changed = changed_since(config.since) if config.since else None
    counts = (
        pipeline
        | "Embeddings"
        >> ReadTable(config.embeddings.items, config.version, _COLUMNS, filter=changed, batch_rows=_BATCH_ROWS)
        # One worker reads a fragment; many write its batches.
        | "Spread batches" >> beam.Reshuffle()
        | "Project and write" >> beam.ParDo(ProjectAndWrite(config))
        | "Sum" >> beam.CombinePerKey(sum)
    )
    return (
        pipeline
        | "End" >> beam.Create([None])
        | "Report" >> beam.Map(lambda _, counted: _report(counted, config), AsDict(counts))
    )


class ProjectAndWrite(beam.DoFn):
    """A batch of rows → (outcome, count) pairs, once the index has accepted them."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def setup(self) -> None:
        card = self._config.index.card
        self._projection = load_projection(self._config.embeddings.lake, card.projection_id, card.encoder_id)
        self._search_index = self._config.cluster.connect()

    def process(self, batch: pa.RecordBatch) -> Iterator[tuple[str, int]]:
        listings = list(listings_of(batch))
        outcome = self._search_index.write(self._config.index.name, listings, self._vectors(batch))
        yield from [("read", len(listings)), *outcome.items()]
        progress.advance("loaded", len(listings), self._config.expected)

    def _vectors(self, batch: pa.RecordBatch) -> Sequence[NDArray[np.float32] | None]:
        present, embeddings = with_embedding(batch)
        vectors = iter(self._projection.apply(embeddings) if len(embeddings) else ())
        return [next(vectors) if there else None for there in present]

    def teardown(self) -> None:
        self._search_index.client.close()


def _report(outcomes: dict[str, int], config: Config) -> Load:
    name = config.index.name
    counts = {outcome: outcomes.get(outcome, 0) for outcome in ("read", "written", "superseded")}
    if counts["read"] != counts["written"] + counts["superseded"] or counts["read"] != config.expected:
        raise LensError(
            f"index {name}: {config.expected} rows were to go in, but the outcome is {counts}: load it again"
        )
    load = Load(
        index=name,
        since=config.since,
        version=config.version,
        counts=counts,
        started_at=config.started_at,
        finished_at=datetime.now(UTC),
    )
    record_load(config.embeddings.lake, load)
    logger.info("loaded into %s: %s", name, counts)
    return load


def configure(
    index_name: str | None, window: Window | None = None, *, encoder_source: str | None = None
) -> list[Config]:
    """Find the indexes to load, and what each of them is missing.

    Args:
        index_name: the index to load; None means the live one and every other that has been filled.
        window: a window that the encoder of the live (or requested) index must have embedded.
        encoder_source: only indexes of this encoder.

    Returns:
        One config per index, the live one first. Other indexes that cannot be loaded are skipped with a warning: they must
        not keep new listings out of the live one.

    Raises:
        LensError: the requested (or live) index, its projection, the encoder, the lake or the cluster cannot be found; or
            that index's encoder has not embedded the window.
    """
    settings = load_settings()
    lake = Lake(settings.lake)
    lake.check()
    search_index = SearchIndex.connect(settings)
    required = search_index.get(index_name) if index_name else search_index.live()
    indexes = [required] if index_name and required else search_index.all()
    if encoder_source:
        only = identify(resolve_encoder(encoder_source, settings))
        indexes = [index for index in indexes if index.card.encoder_id == only]
    if window and required in indexes and required:
        _require_embedded(lake, required, window)
    configs = []
    for index in sorted(indexes, key=lambda index: index != required):
        if index != required and not loaded_version(lake, index.name):
            # This would load the whole table, in parallel with the rebuild that is doing so.
            logger.info("index %s is left to the rebuild that made it, which has not filled it yet", index.name)
            continue
        try:
            load_projection(lake, index.card.projection_id, index.card.encoder_id)
            configs.append(lacking(lake, index, Cluster.of(settings)))
        except LensError as err:
            if index == required:
                raise
            logger.warning("index %s is not loaded: %s", index.name, err)
    return configs


def lacking(lake: Lake, index: Index, cluster: Cluster) -> Config:
    """What an index is currently missing. Raises LensError when its encoder has embedded nothing yet."""
    embeddings = Embeddings(lake, index.card.encoder_id)
    version, since = embeddings.require(), loaded_version(lake, index.name)
    changed = embeddings.count(version, changed_since(since) if since else None)
    return Config(embeddings, index, since, version, changed, datetime.now(UTC), cluster)


def _require_embedded(lake: Lake, index: Index, window: Window) -> None:
    not_landed = gaps(window, lake.windows(LISTINGS, window))
    if not_landed or windows_not_embedded(lake, index.card.encoder_id, window):
        raise LensError(
            f"window {window} is not embedded by {index.card.encoder_id}, so index {index.name} would lack it: "
            f"embed it first, with --encoder {index.card.encoder_source}"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the pipeline to its end, once per index."""
    arguments = parser(__doc__)
    arguments.add_argument("--index", help="the index to load, by its full name (default: every one that was filled)")
    arguments.add_argument("--encoder", metavar="SOURCE", help="only indexes of this encoder (default: of any)")
    add_window(arguments, required=False)
    known, beam_arguments = arguments.parse_known_args(argv)
    configs = configure(known.index, optional_window(known), encoder_source=known.encoder)
    if not configs:
        logger.info("there is no index to load into")
    for config in configs:
        reached = -1
        # A load that takes hours is followed by one of what was embedded meanwhile. One that was only submitted, as a template
        # is, gets no further.
        while reached < config.since < config.version:
            reached = config.since
            with beam.Pipeline(options=pipeline_options(load_settings(), beam_arguments)) as pipeline:
                run(pipeline, config)
            config = lacking(config.embeddings.lake, config.index, config.cluster)


if __name__ == "__main__":
    launch(main)
