"""Compact the lake: merge the small files of the embeddings tables into large ones, and remove data that is no longer needed.

Each merge adds a file and marks the rows it replaced as deleted. This job rewrites such files, one commit per large file, so
that a window embedded in the meantime waits for at most one of them; rows that only move do not count as changed. First,
items sold or deleted more than LENS_LAKE_REMOVED_DAYS ago are deleted from the tables, so that the lake grows with the
catalog, not with its history. Table versions older than LENS_LAKE_RETENTION_DAYS are dropped, and files staged by runs that
died are removed after two days. The search service's log is forgotten after LENS_SEARCH_LOG_DAYS, with its photos and the
sessions that refer to them; the log of listings a week after they have landed.

    python -m beam_jobs.compact_lake
    python -m beam_jobs.compact_lake --encoder models:/listing-encoder@champion
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import apache_beam as beam

from beam_jobs.launcher import launch, parser, pipeline_options
from listing_lens import progress
from listing_lens.embedding.sources import resolve_encoder
from listing_lens.indexing.listing_log import ListingLog
from listing_lens.lake.embeddings import Embeddings, every_encoder, removed_before
from listing_lens.lake.searches import forget_searches, kept_since
from listing_lens.lake.tables import Compacted, Table
from listing_lens.lake.windows import Lake, is_abandoned
from listing_lens.settings import load_settings
from models.encoders.files import identify

logger = logging.getLogger(__name__)

# How long the log of listings is kept once they have landed: a replay goes a day back.
_LISTINGS_KEPT = timedelta(days=7)


@dataclass(frozen=True)
class Config:
    """One compaction: which encoders' tables, how long versions are kept, and the cutoffs for sold items and for logs."""

    lake: Lake
    embeddings: tuple[Embeddings, ...]
    keep: timedelta
    removed_before: datetime
    searches_since: date
    listings_since: date

    @property
    def tables(self) -> tuple[Table, ...]:
        return tuple(table for embeddings in self.embeddings for table in embeddings.tables if table.exists())


def run(tables: beam.PCollection[Table], config: Config) -> beam.PCollection[Compacted]:
    """`Table`s → the `Compacted` result of each."""
    return tables | "Spread tables" >> beam.Reshuffle() | "Compact" >> beam.Map(_compact, config)


def _compact(table: Table, config: Config) -> Compacted:
    compacted = table.compact(config.keep)
    progress.advance("compacted", 1, len(config.tables))
    logger.info(
        "%s: %d files instead of %d, %.1f MB removed",
        table.path,
        compacted.files_after,
        compacted.files_before,
        compacted.bytes_removed / 1e6,
    )
    return compacted


def forget_removed(embeddings: Embeddings, before: datetime) -> int:
    """Delete the rows of items sold or deleted before a given time. Returns how many there were."""
    return embeddings.items.delete_where(removed_before(before))


def sweep(embeddings: Embeddings, now: datetime) -> int:
    """Remove the staged files of runs that can no longer be running. Returns the number of runs."""
    lake = embeddings.lake
    abandoned = [attempt for attempt in lake.folders(embeddings.staging) if is_abandoned(attempt, now)]
    for attempt in abandoned:
        lake.remove_folder(f"{embeddings.staging}/{attempt}")
    return len(abandoned)


def configure(encoder_source: str | None = None) -> Config:
    """Find the tables of one encoder, or of every encoder.

    Raises:
        LensError: the encoder is unknown, or the lake cannot be reached.
    """
    settings, now = load_settings(), datetime.now(UTC)
    lake = Lake(settings.lake)
    lake.check()
    every = every_encoder(lake)
    if encoder_source:
        every = [Embeddings(lake, identify(resolve_encoder(encoder_source, settings)))]
    return Config(
        lake,
        tuple(every),
        keep=timedelta(days=settings.lake_retention_days),
        removed_before=now - timedelta(days=settings.lake_removed_days),
        searches_since=kept_since(settings.search_log_days, now),
        listings_since=(now - _LISTINGS_KEPT).date(),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the pipeline to its end."""
    arguments = parser(__doc__)
    arguments.add_argument("--encoder", metavar="SOURCE", help="only embeddings of this encoder (default: of all)")
    known, beam_arguments = arguments.parse_known_args(argv)
    config = configure(known.encoder)
    forgotten_searches = forget_searches(config.lake, config.searches_since)
    logger.info("searches before %s: %s", config.searches_since, forgotten_searches)
    forgotten_days = ListingLog.of(config.lake).forget(config.listings_since)
    logger.info("log of listings before %s: %d days are forgotten", config.listings_since, forgotten_days)
    for embeddings in config.embeddings:
        forgotten = forget_removed(embeddings, config.removed_before)
        logger.info("%s: %d items that were sold or deleted long ago are forgotten", embeddings.encoder_id, forgotten)
    if config.tables:
        with beam.Pipeline(options=pipeline_options(load_settings(), beam_arguments)) as pipeline:
            run(pipeline | "Tables" >> beam.Create(config.tables), config)
    for embeddings in config.embeddings:
        swept = sweep(embeddings, datetime.now(UTC))
        logger.info("%s: what %d runs that died had staged is removed", embeddings.encoder_id, swept)


if __name__ == "__main__":
    launch(main)
