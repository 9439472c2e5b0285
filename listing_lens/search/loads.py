"""Records of each load into an index, kept in the lake; they determine what the index is still missing."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from listing_lens.lake.windows import Lake


class Load(BaseModel):
    """One load of the rows that changed up to a version of the encoder's table; `read` = `written` + `superseded`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: str
    # The rows that changed after version `since` (0: all rows), up to `version`.
    since: int
    version: int
    counts: dict[str, int]
    started_at: datetime
    finished_at: datetime


def record_load(lake: Lake, load: Load) -> None:
    """Save the record of a finished load."""
    path = f"{_folder(lake, load.index)}/{Lake.new_attempt(load.finished_at)}.json"
    lake.write_bytes(path, load.model_dump_json(indent=2).encode())


def loads_of(lake: Lake, index_name: str) -> list[Load]:
    """Every finished load of an index."""
    return [Load.model_validate_json(lake.read_bytes(path)) for path in lake.files(_folder(lake, index_name), ".json")]


def loaded_version(lake: Lake, index_name: str) -> int:
    """The version of the encoder's table up to which an index has all changes; 0 if nothing has been loaded yet."""
    reached = 0
    for load in sorted(loads_of(lake, index_name), key=lambda load: (load.since, load.version)):
        # A load that starts beyond the version reached so far leaves a gap, and does not count.
        if load.since <= reached:
            reached = max(reached, load.version)
    return reached


def _folder(lake: Lake, index_name: str) -> str:
    return f"{lake.root}/loads/{index_name}"
