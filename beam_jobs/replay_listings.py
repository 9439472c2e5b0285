"""Replay the log of listings into an index: what was told before the index was made, and has not landed since.

Whoever tells of a listing reaches the indexes that are there. An index that is made later gets the listing from the lake, once
its window has landed and been embedded; until then it is in the log alone. So the log is replayed before the alias moves: what
was written to it since the last window landed, and for up to a day before that. Of each item the newest version is embedded and
written, unless the index holds it already, so a replay can be repeated at any time.

A listing that the index cannot hold, e.g. because its photo is gone, is set aside in `logs/listings-set-aside` with the reason;
the job fails if more than LENS_MAX_DEAD_LETTER_RATIO of them are.

    python -m beam_jobs.replay_listings --index listings-…
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import apache_beam as beam
from apache_beam.pvalue import AsDict

from beam_jobs.launcher import launch, parser, pipeline_options
from beam_jobs.transforms.indexing import Indexing
from beam_jobs.transforms.newest import KeepNewest
from listing_lens import progress
from listing_lens.errors import LensError
from listing_lens.indexing.listing_log import ListingLog
from listing_lens.lake.records import Listing, by_version
from listing_lens.lake.windows import Lake
from listing_lens.search.index import PATIENCE_S, Index, SearchIndex
from listing_lens.settings import Settings, load_settings

logger = logging.getLogger(__name__)

# Listings that are embedded and written together.
_TOGETHER = 64
# So many listings may be unusable in any case: an hour's log may be smaller than the ratio allows for one.
_LEAST_UNUSABLE = 10


@dataclass(frozen=True)
class Config:
    """One replay.

    Attributes:
        log: the log of listings.
        files: those of its files that are replayed.
        index: the index that they are replayed into.
        indexing: how listings are written to it.
        max_unusable_ratio: the job fails if a larger share cannot be held.
    """

    log: ListingLog
    files: tuple[str, ...]
    index: Index
    indexing: Indexing
    max_unusable_ratio: float


def run(pipeline: beam.Pipeline, config: Config) -> beam.PCollection[dict[str, int]]:
    """The log's files → what became of the listings in them, once they are in the index: their numbers by outcome."""
    kept = (
        pipeline
        | "Files" >> beam.Create(config.files)
        | "Spread files" >> beam.Reshuffle()
        | "Read" >> beam.FlatMap(config.log.read)
        | "Key by item" >> beam.WithKeys(lambda listing: listing.item_id)
        | "Keep the newest" >> beam.CombinePerKey(KeepNewest(by_version, lambda _: "older"))
    )
    older = kept | "Older ones" >> beam.FlatMapTuple(lambda _, best: best[1].items())
    outcomes = (
        kept
        | "Newest" >> beam.MapTuple(lambda _, best: best[0])
        | "Batch" >> beam.BatchElements(min_batch_size=_TOGETHER, max_batch_size=_TOGETHER)
        | "Embed and write" >> beam.ParDo(WriteListings(config))
    )
    counts = (older, outcomes) | "All counts" >> beam.Flatten() | "Sum" >> beam.CombinePerKey(sum)
    return pipeline | "End" >> beam.Create([config]) | "Finish" >> beam.Map(_finish, AsDict(counts))


class WriteListings(beam.DoFn):
    """Listings, one of each item → the number of them by outcome, once they are in the index or set aside."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def setup(self) -> None:
        self._indexer = self._config.indexing.connect()
        self._set_aside = self._config.indexing.set_aside()

    def process(self, listings: Sequence[Listing]) -> Iterator[tuple[str, int]]:
        index = self._config.index
        result = self._indexer.write(listings, [index])
        if index.name in result.failed:
            raise LensError(result.failed[index.name])
        self._set_aside.listings(result.unusable, datetime.now(UTC))
        written, unusable = result.written[index.name], len(result.unusable)
        yield "written", written
        yield "held", len(listings) - written - unusable
        yield "unusable", unusable
        progress.advance("replayed", len(listings))

    def teardown(self) -> None:
        self._indexer.builds.client.close()


def _finish(config: Config, found: dict[str, int]) -> dict[str, int]:
    counts = {name: found.get(name, 0) for name in ("older", "written", "held", "unusable")}
    newest = counts["written"] + counts["held"] + counts["unusable"]
    if counts["unusable"] > max(_LEAST_UNUSABLE, config.max_unusable_ratio * newest):
        raise LensError(
            f"index {config.index.name} cannot hold {counts['unusable']} of {newest} listings of the log, more than "
            f"LENS_MAX_DEAD_LETTER_RATIO allows: see logs/listings-set-aside in the lake for why, and replay them again"
        )
    total = {"read": newest + counts.pop("older"), "newest": newest, **counts}
    logger.info("replayed into %s: %s", config.index.name, total)
    return total


def configure(index_name: str, settings: Settings, now: datetime) -> Config:
    """Find what is to be replayed into an index.

    Raises:
        LensError: there is no such index, or the cluster or the lake cannot be reached.
    """
    lake = Lake(settings.lake)
    lake.check()
    log = ListingLog.of(lake)
    # What is told after this reaches the index by itself: the index is there.
    index = SearchIndex.connect(settings, patience_s=PATIENCE_S).get(index_name)
    files = tuple(log.files_not_landed(now))
    return Config(log, files, index, Indexing.of(settings), settings.max_dead_letter_ratio)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the pipeline to its end."""
    arguments = parser(__doc__)
    arguments.add_argument("--index", required=True, help="the index to replay into, by its full name")
    known, beam_arguments = arguments.parse_known_args(argv)
    settings = load_settings()
    config = configure(known.index, settings, datetime.now(UTC))
    if not config.files:
        logger.info("no listing was told of that has not landed: nothing is replayed")
        return
    with beam.Pipeline(options=pipeline_options(settings, beam_arguments)) as pipeline:
        run(pipeline, config)


if __name__ == "__main__":
    launch(main)
