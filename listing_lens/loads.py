"""What was loaded into an index: a record a load, in the lake, from which follows what it still lacks."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from listing_lens.lake.window import Window
from listing_lens.lake.windows import Lake, embeddings
from listing_lens.search.index import Index


class Load(BaseModel):
    """One load: `read` = `written` + `superseded`. What landed after `started_at` may not be in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: str
    windows: list[str]
    counts: dict[str, int]
    started_at: datetime
    finished_at: datetime


def record_load(lake: Lake, load: Load) -> None:
    """Keep the record of a load that has finished."""
    path = f"{_folder(lake, load.index)}/{Lake.new_attempt(load.finished_at)}.json"
    lake.write_bytes(path, load.model_dump_json(indent=2).encode())


def loads_of(lake: Lake, index_name: str) -> list[Load]:
    """Every finished load of an index."""
    return [Load.model_validate_json(lake.read_bytes(path)) for path in lake.list(_folder(lake, index_name), ".json")]


def loaded_windows(lake: Lake, index: Index) -> list[Window]:
    """The windows whose embeddings an index holds as the lake has them now."""
    began: dict[str, datetime] = {}
    for load in loads_of(lake, index.name):
        for name in load.windows:
            began[name] = max(load.started_at, began.get(name, load.started_at))
    dataset = embeddings(index.card.encoder_id)
    return [
        window
        for window in lake.windows(dataset)
        if window.name in began and lake.manifest(dataset, window).created_at < began[window.name]
    ]


def _folder(lake: Lake, index_name: str) -> str:
    return f"{lake.root}/loads/{index_name}"
