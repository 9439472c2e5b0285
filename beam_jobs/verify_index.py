"""Verify an index: every loaded listing is in it, at least as new as in the lake, and can be found if it should be.

Reads the newest version of each item, as of the loaded version of the table, and looks it up in the index by id. The job
fails, with examples, if any item is missing, outdated, without its vector, or searchable when it should not be; so the alias
is not moved.

Whole windows of listings must not be missing either: the job also fails if a window landed before the index's first load
began and the index's encoder has not embedded it.

Windows that landed later are not checked: their own `embed_new_listings` runs bring them into every index, this one
included.

    python -m beam_jobs.verify_index --index listings-…
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import AsDict, AsSingleton

from beam_jobs.launcher import launch, parser, pipeline_options
from beam_jobs.transforms.cluster import Cluster
from beam_jobs.transforms.tables import ReadTable
from listing_lens import progress
from listing_lens.embedding.sources import windows_not_embedded
from listing_lens.errors import LensError
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.records import SEARCHABLE
from listing_lens.lake.windows import LISTINGS, Lake
from listing_lens.search.index import Index, SearchIndex
from listing_lens.search.loads import loaded_version, loads_of
from listing_lens.settings import load_settings

logger = logging.getLogger(__name__)

_BATCH_ITEMS = 1000
# Discrepancies listed in the error message.
_EXAMPLES = 5
_COLUMNS = ["item_id", "version", "status"]

# An item's state: (version, status).
State = tuple[int, str]


@dataclass(frozen=True)
class Config:
    """One verification: which index, against which version of its encoder's table."""

    embeddings: Embeddings
    index: Index
    version: int
    cluster: Cluster


def run(pipeline: beam.Pipeline, config: Config) -> beam.PCollection[dict[str, int]]:
    """The table → its number of items of each kind; raises if any of them is not in the index as it should be."""
    items = (
        pipeline
        | "States" >> ReadTable(config.embeddings.items, config.version, _COLUMNS, batch_rows=_BATCH_ITEMS)
        | "Spread batches" >> beam.Reshuffle()
    )
    discrepancies = items | "Look up" >> beam.ParDo(LookUp(config))
    kinds = items | "Kinds" >> beam.FlatMap(_kinds) | "Count kinds" >> beam.CombinePerKey(sum)
    examples = discrepancies | "Examples" >> beam.combiners.Top.Smallest(_EXAMPLES)
    return (
        pipeline
        | "End" >> beam.Create([config])
        | "Require equal"
        >> beam.Map(
            _require_equal,
            AsSingleton(discrepancies | "Count" >> beam.combiners.Count.Globally()),
            AsSingleton(examples),
            AsDict(kinds),
        )
    )


class LookUp(beam.DoFn):
    """A batch of items from the table → a description of each discrepancy in the index."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def setup(self) -> None:
        self._search_index = self._config.cluster.connect()

    def process(self, batch: pa.RecordBatch) -> Iterator[str]:
        name, items = self._config.index.name, list(_states(batch))
        held = self._search_index.versions(name, [item_id for item_id, _ in items])
        findable = self._search_index.with_vector(name, list(held))
        for item_id, wanted in items:
            if problem := _problem(wanted, held.get(item_id), findable=item_id in findable):
                yield f"{item_id} {problem}"
        progress.advance("verified", len(items))

    def teardown(self) -> None:
        self._search_index.client.close()


def _states(batch: pa.RecordBatch) -> Iterator[tuple[str, State]]:
    for item_id, version, status in zip(*(batch.column(name).to_pylist() for name in _COLUMNS), strict=True):
        yield item_id, (version, status)


def _kinds(batch: pa.RecordBatch) -> Iterator[tuple[str, int]]:
    yield from Counter(_kind(state) for _, state in _states(batch)).items()


def _kind(state: State) -> str:
    return "searchable" if state[1] in SEARCHABLE else "removed"


def _problem(wanted: State, held: State | None, *, findable: bool) -> str | None:
    if held is None:
        return "is missing"
    if held[0] < wanted[0]:
        return "is older than in the lake"
    if held[0] == wanted[0] and _kind(held) != _kind(wanted):
        return f"is {held[1]} instead of {wanted[1]}"
    if findable != (_kind(held) == "searchable"):
        return f"is {held[1]}, but a search {'finds it' if findable else 'cannot find it'}"
    return None


def _require_equal(config: Config, differing: int, examples: list[str], kinds: dict[str, int]) -> dict[str, int]:
    expected = {"searchable": 0, "removed": 0} | kinds
    if differing:
        raise LensError(
            f"index {config.index.name} is not what the lake holds: {differing} of {sum(expected.values())} items differ, "
            f"e.g. {'; '.join(examples)}: load it again"
        )
    held = config.cluster.connect().counts(config.index.name)
    logger.info("verified %s: the lake holds %s, the index %s", config.index.name, expected, held)
    return expected


def configure(index_name: str) -> Config:
    """Find the index, and check that its encoder has embedded every window that it must hold.

    Raises:
        LensError: the index, the lake or the cluster cannot be found, nothing was loaded into the index, or its encoder
            has not embedded one of the windows.
    """
    settings = load_settings()
    lake = Lake(settings.lake)
    lake.check()
    search_index = SearchIndex.connect(settings)
    index = search_index.get(index_name)
    version = loaded_version(lake, index_name)
    if not version:
        raise LensError(
            f"nothing was loaded into index {index_name} yet: an empty index is not swapped in; load it first"
        )
    _require_all_embedded(lake, index)
    search_index.finish_load(index_name)
    return Config(Embeddings(lake, index.card.encoder_id), index, version, Cluster.of(settings))


def _require_all_embedded(lake: Lake, index: Index) -> None:
    began = min(load.started_at for load in loads_of(lake, index.name))
    windows = windows_not_embedded(lake, index.card.encoder_id)
    manifests = lake.manifests(LISTINGS, windows)
    missing = [window for window in windows if manifests[window].created_at < began]
    if missing:
        raise LensError(
            f"index {index.name} lacks {len(missing)} windows of listings that {index.card.encoder_id} has not embedded, "
            f"e.g. {missing[0]}: embed them with --each_landed --encoder {index.card.encoder_source}, then load it again"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the pipeline to its end."""
    arguments = parser(__doc__)
    arguments.add_argument("--index", required=True, help="the index to verify, by its full name")
    known, beam_arguments = arguments.parse_known_args(argv)
    config = configure(known.index)
    with beam.Pipeline(options=pipeline_options(load_settings(), beam_arguments)) as pipeline:
        run(pipeline, config)


if __name__ == "__main__":
    launch(main)
