"""Where the reports of verifications are kept: the last one of each index."""

from __future__ import annotations

from listing_lens.lake.windows import Lake
from listing_lens.search.index import SearchIndex
from listing_lens.search.verification import Verification
from listing_lens.settings import Settings


def record_verification(settings: Settings, search_index: SearchIndex, verification: Verification) -> None:
    """Keep the report of an index's verification, in place of an earlier one."""
    lake = Lake(settings.lake)
    lake.write_bytes(_path(lake, verification.index), verification.model_dump_json(indent=2).encode())


def recorded_verification(settings: Settings, search_index: SearchIndex, index_name: str) -> Verification | None:
    """The report of an index's last verification; None if it was never verified."""
    lake = Lake(settings.lake)
    path = _path(lake, index_name)
    return Verification.model_validate_json(lake.read_bytes(path)) if lake.exists(path) else None


def _path(lake: Lake, index_name: str) -> str:
    return f"{lake.root}/verifications/{index_name}.json"
