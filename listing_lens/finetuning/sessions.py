"""The held-out search sessions of a sample of pairs, and photos of what they showed."""

from __future__ import annotations

from collections.abc import Iterator

from listing_lens.lake.pairs import SESSION_ITEMS, PairsInfo
from listing_lens.lake.windows import Lake
from models.finetune.validation import HeldOutSession

_READ_ROWS = 256


def held_out_sessions(lake: Lake, info: PairsInfo, kind: str) -> Iterator[HeldOutSession]:
    """The sessions of a kind: those to validate on, or those to test on."""
    for batch in lake.read(info.dataset, [info.window], kind=kind, batch_rows=_READ_ROWS):
        for row in batch.to_pylist():
            yield HeldOutSession(**row | {name: tuple(row[name]) for name in ("shown", "tapped", "groups")})


def session_items(lake: Lake, info: PairsInfo) -> Iterator[tuple[str, bytes]]:
    """(item id, encoded image) of all items that the sessions show."""
    for batch in lake.read(info.dataset, [info.window], kind=SESSION_ITEMS, batch_rows=_READ_ROWS):
        yield from zip(batch["item_id"].to_pylist(), batch["image"].to_pylist(), strict=True)
