"""Mending an index: what differs is written again from the lake, and what the lake does not hold is deleted."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
from pydantic import TypeAdapter

from beam_jobs.verification.config import MOST_REPAIRED, Config
from beam_jobs.verification.reconcile import Reconciled
from beam_jobs.verification.surplus import Surplus
from listing_lens import progress
from listing_lens.errors import LensError
from listing_lens.lake.embeddings import rows_of, with_embedding
from listing_lens.lake.records import LISTING_SCHEMA, listings_of
from listing_lens.lake.tables import places_of
from listing_lens.search.index import Scanned, SearchIndex

_BATCH_ROWS = 1000


@dataclass(frozen=True)
class ToRepair:
    """What a verification leaves for a repair: ids of items that differ, and surplus documents."""

    item_ids: tuple[str, ...]
    surplus: tuple[Scanned, ...]


def leave(config: Config, reconciled: Reconciled, surplus: Surplus) -> None:
    """Leave what is to be repaired in the lake: a pipeline returns nothing to the process that started it."""
    to_repair = ToRepair(tuple(sorted(reconciled.to_repair)), surplus.documents)
    config.embeddings.lake.write_bytes(_path(config), TypeAdapter(ToRepair).dump_json(to_repair))


def repair(config: Config) -> str:
    """Repair what the verification before has left. Returns what was done, as a sentence.

    Raises:
        LensError: it is too much, or Elasticsearch refuses it.
    """
    lake, name = config.embeddings.lake, config.index.name
    to_repair = TypeAdapter(ToRepair).validate_json(lake.read_bytes(_path(config)))
    lake.remove(_path(config))
    if len(to_repair.item_ids) + len(to_repair.surplus) > MOST_REPAIRED:
        raise LensError(f"index {name} differs in more than {MOST_REPAIRED:,} items from the lake: rebuild it")
    search_index = config.cluster.connect()
    try:
        written = _write_again(config, search_index, to_repair.item_ids)
        deleted = search_index.remove(name, to_repair.surplus)
        search_index.finish_load(name)
    finally:
        search_index.client.close()
    return f"{written:,} items were written again from the lake, and {deleted:,} surplus documents deleted"


def _write_again(config: Config, search_index: SearchIndex, item_ids: tuple[str, ...]) -> int:
    table, projection, wanted = config.embeddings.items, config.projection(), pa.array(item_ids, pa.string())
    written = 0
    for place in places_of(table, config.version) if item_ids else ():
        rows = rows_of(table, place, wanted, [*LISTING_SCHEMA.names, "embedding"])
        for batch in rows.to_batches(max_chunksize=_BATCH_ROWS):
            present, embeddings = with_embedding(batch)
            vectors = iter(projection.apply(embeddings))
            outcome = search_index.write(
                config.index.name, list(listings_of(batch)), [next(vectors) if there else None for there in present]
            )
            written += outcome.written
            progress.advance("repaired", len(batch), len(item_ids))
    return written


def _path(config: Config) -> str:
    return f"{config.embeddings.lake.root}/verifications/{config.index.name}.to_repair.json"
