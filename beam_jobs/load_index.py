"""Load an index: the newest version of each item → projected to the index's own space → Elasticsearch.

An index names its space, and the job uses that space's projection, so vectors of another space cannot get in. Documents carry
the listing's version as an external version, so rows can be loaded in any order, and a load can be repeated. Loads are
incremental: only the rows that changed since the last load are written, up to the table's version when the job starts. Whatever
is embedded in the meantime is loaded afterwards, until the index is up to date.

A load consists of parts, which are spread over the workers and recorded in the ledger of loads as they are finished: a load
that was killed goes on where it stopped, with the table's version that it had begun with. A document that Elasticsearch refuses
is set aside with its reason; the job fails if more than LENS_MAX_DEAD_LETTER_RATIO of them are.

--live loads the index behind the alias. With a window, the index's encoder must have embedded that window.

    python -m beam_jobs.load_index --index listings-…
    python -m beam_jobs.load_index --live --window_start 2026-01-31T00:00:00Z --window_end 2026-02-01T00:00:00Z
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import AsDict

from beam_jobs.launcher import add_window, launch, optional_window, parser, pipeline_options
from beam_jobs.transforms.cluster import Cluster
from listing_lens import progress
from listing_lens.embedding.sources import resolve_encoder, windows_not_embedded
from listing_lens.errors import LensError
from listing_lens.lake.embeddings import Embeddings, with_embedding
from listing_lens.lake.fits import load_projection
from listing_lens.lake.records import LISTING_SCHEMA
from listing_lens.lake.tables import changed_since, scan
from listing_lens.lake.window import Window, gaps
from listing_lens.lake.windows import LISTINGS, Lake
from listing_lens.search.documents import Document, Refusal, documents_of
from listing_lens.search.index import PATIENCE_S, Index, SearchIndex
from listing_lens.search.loads import Load, Loads, Part
from listing_lens.settings import Settings, load_settings
from models.encoders.files import identify

logger = logging.getLogger(__name__)

# Rows read and projected together; and rows of a part, which is half a minute of work. Between two parts the cluster idles: with
# 20,000 rows, for a tenth of the time.
_BATCH_ROWS = 2000
_PART_ROWS = 50_000
_COLUMNS = [*LISTING_SCHEMA.names, "version", "embedding"]
# So many documents may be refused in any case: an hour's load may be smaller than the ratio allows for one.
_LEAST_REFUSED = 10
# Refused documents that an error message lists.
_EXAMPLES = 3


@dataclass(frozen=True)
class Config:
    """One load: which rows of an encoder's table, into which index.

    Attributes:
        load: the load, as it is in the ledger.
        parts: those of its parts that are still to be done.
        most_refused: how many documents the index may refuse.
    """

    embeddings: Embeddings
    index: Index
    load: Load
    parts: tuple[Part, ...]
    most_refused: int
    cluster: Cluster


def run(pipeline: beam.Pipeline, config: Config) -> beam.PCollection[Load]:
    """The parts that are to be done → the finished `Load`, once all rows are in the index."""
    loaded = (
        pipeline
        | "Parts" >> beam.Create(config.parts)
        | "Spread parts" >> beam.Reshuffle()
        | "Project and write" >> beam.ParDo(LoadPart(config))
        | "Sum" >> beam.CombinePerKey(sum)
    )
    return pipeline | "End" >> beam.Create([config]) | "Finish" >> beam.Map(_finish, AsDict(loaded))


class LoadPart(beam.DoFn):
    """A part → ("rows", how many), once all of it is in the index and in the ledger."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def setup(self) -> None:
        card = self._config.index.card
        self._projection = load_projection(self._config.embeddings.lake, card.projection_id, card.encoder_id)
        self._search_index = self._config.cluster.connect()
        self._loads = Loads(self._search_index, self._config.index)

    def process(self, part: Part) -> Iterator[tuple[str, int]]:
        forgotten = _Count()
        written = self._search_index.write_documents(self._config.index.name, self._documents(part, forgotten))
        rows = written.read + forgotten.number
        if rows:
            self._loads.record(self._config.load, part, written, forgotten.number)
            progress.advance("loaded", rows, self._config.load.expected)
            yield "rows", rows

    def _documents(self, part: Part, forgotten: _Count) -> Iterator[Document | Refusal]:
        load, card = self._config.load, self._config.index.card
        fragment = self._config.embeddings.items.open(load.version).get_fragment(part.fragment)
        assert fragment is not None, f"fragment {part.fragment} is gone"
        for batch in scan(
            fragment,
            _COLUMNS,
            filter=changed_since(load.since) if load.since else None,
            batch_size=_BATCH_ROWS,
            # Lance takes the two together, and without a filter.
            offset=None if part.rows is None else part.offset,
            limit=part.rows,
        ):
            kept = _remembered(batch, load.forgets_before)
            forgotten.number += len(batch) - len(kept)
            present, embeddings = with_embedding(kept)
            yield from documents_of(kept, self._projection.apply(embeddings), present, card.dims)

    def teardown(self) -> None:
        self._search_index.client.close()


@dataclass
class _Count:
    number: int = 0


def _remembered(batch: pa.RecordBatch, before: datetime | None) -> pa.RecordBatch:
    """The rows of a batch but those of items that were sold or deleted before a time."""
    if before is None:
        return batch
    old = pc.and_(batch.column("embedding").is_null(), pc.less(batch.column("updated_at"), pa.scalar(before)))
    return batch.filter(pc.invert(old))


def _finish(config: Config, _: dict[str, int]) -> Load:
    search_index = config.cluster.connect()
    loads = Loads(search_index, config.index)
    counts = loads.counts(config.load)
    if counts["refused"] > config.most_refused:
        examples = "; ".join(f"item {one.item_id!r}: {one.reason}" for one in loads.refusals()[:_EXAMPLES])
        loads.remove_parts(config.load)
        raise LensError(
            f"index {config.index.name} refused {counts['refused']} of {counts['read']} documents, more than "
            f"LENS_MAX_DEAD_LETTER_RATIO allows, e.g. {examples}: correct them, or allow more, and load it again"
        )
    load = loads.finish(config.load, datetime.now(UTC))
    logger.info("loaded into %s: %s", config.index.name, load.counts)
    return load


# ---- what is to be loaded --------------------------------------------------------------------------------------------


def find_index(
    search_index: SearchIndex,
    index_name: str | None,
    window: Window | None = None,
    *,
    encoder_source: str | None = None,
    settings: Settings,
) -> Index | None:
    """The index to load: the named one, or the live one; None if there is none, or if it is of another encoder.

    Raises:
        LensError: there is no index of that name, or the live one would lack the window, which its encoder has not embedded.
    """
    index = search_index.get(index_name) if index_name else search_index.live()
    if index is None:
        return None
    if encoder_source and identify(resolve_encoder(encoder_source, settings)) != index.card.encoder_id:
        return None
    if window:
        _require_embedded(Lake(settings.lake), index, window)
    return index


def configure(index: Index, search_index: SearchIndex, settings: Settings) -> Config:
    """Begin a load of what an index is missing, or find the one that was begun.

    Raises:
        LensError: the index's projection cannot be found, or its encoder has embedded nothing yet.
    """
    lake = Lake(settings.lake)
    load_projection(lake, index.card.projection_id, index.card.encoder_id)
    embeddings, loads = Embeddings(lake, index.card.encoder_id), Loads(search_index, index)
    latest, reached = embeddings.require(), loads.reached()
    load = loads.unfinished()
    if load is None or not embeddings.items.has(load.version):
        load = _new_load(embeddings, reached, latest, settings)
        loads.begin(load)
    every, done = list(_parts(embeddings, load)), loads.parts_done(load)
    if not done <= set(every):
        # They were cut otherwise by another release: together with these, some rows would count twice.
        loads.remove_parts(load)
        done = set()
    parts = tuple(part for part in every if part not in done)
    most_refused = max(_LEAST_REFUSED, int(settings.max_dead_letter_ratio * load.expected))
    return Config(embeddings, index, load, parts, most_refused, Cluster.of(settings))


def _new_load(embeddings: Embeddings, since: int, version: int, settings: Settings) -> Load:
    now = datetime.now(UTC)
    return Load(
        since=since,
        version=version,
        expected=embeddings.count(version, changed_since(since) if since else None),
        # What was sold long ago need not be in a new index. One that is fed must hear that its items are sold.
        forgets_before=None if since else now - timedelta(days=settings.index_removed_days),
        started_at=now,
    )


def _parts(embeddings: Embeddings, load: Load) -> Iterator[Part]:
    """A load's parts: slices of each fragment; of the rows that changed, which are few, those of a fragment together."""
    for fragment in embeddings.items.open(load.version).get_fragments():
        if load.since:
            yield Part(fragment.fragment_id)
            continue
        rows = fragment.count_rows()
        for offset in range(0, rows, _PART_ROWS):
            yield Part(fragment.fragment_id, offset, min(_PART_ROWS, rows - offset))


def _require_embedded(lake: Lake, index: Index, window: Window) -> None:
    not_landed = gaps(window, lake.windows(LISTINGS, window))
    if not_landed or windows_not_embedded(lake, index.card.encoder_id, window):
        raise LensError(
            f"window {window} is not embedded by {index.card.encoder_id}, so index {index.name} would lack it: "
            f"embed it first, with --encoder {index.card.encoder_source}"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run pipelines until the index lacks nothing."""
    arguments = parser(__doc__)
    which = arguments.add_mutually_exclusive_group(required=True)
    which.add_argument("--index", help="the index to load, by its full name")
    which.add_argument("--live", action="store_true", help="load the index that the alias points to")
    arguments.add_argument("--encoder", metavar="SOURCE", help="only if the index is of this encoder (default: of any)")
    add_window(arguments, required=False)
    known, beam_arguments = arguments.parse_known_args(argv)
    settings = load_settings()
    Lake(settings.lake).check()
    search_index = SearchIndex.connect(settings, patience_s=PATIENCE_S)
    index = find_index(
        search_index, known.index, optional_window(known), encoder_source=known.encoder, settings=settings
    )
    if index is None:
        logger.info("there is no index to load into")
        return
    reached = -1
    # A load that takes hours is followed by one of what was embedded meanwhile. One that was only submitted, as a template is,
    # gets no further.
    loads, embeddings = Loads(search_index, index), Embeddings(Lake(settings.lake), index.card.encoder_id)
    while loads.is_behind(embeddings) and reached < loads.reached():
        reached = loads.reached()
        config = configure(index, search_index, settings)
        with beam.Pipeline(options=pipeline_options(settings, beam_arguments)) as pipeline:
            run(pipeline, config)


if __name__ == "__main__":
    launch(main)
