"""The checks that need no look at the items: the mapping, the windows, and the size beside the live index."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from beam_jobs.verification.config import EXAMPLES
from listing_lens.lake.ledger import Line, not_embedded
from listing_lens.lake.window import Window
from listing_lens.lake.windows import Manifest
from listing_lens.search.index import Index, SearchIndex
from listing_lens.search.verification import Check

# A window that landed since is embedded by its own run, which takes minutes: one that has waited for longer was forgotten.
LANDED_PATIENCE = timedelta(hours=2)


def check_mapping(index: Index, mapping: Mapping[str, Any], index_type: str) -> Check:
    """Whether an index names the space of its vectors, and compares them as it should."""
    meta, vector = mapping.get("_meta", {}), mapping["properties"]["vector"]
    held = {
        "space": meta.get("space"),
        "dims": vector.get("dims"),
        "similarity": vector.get("similarity"),
        "index_options.type": vector.get("index_options", {}).get("type"),
    }
    wanted = {
        "space": index.card.space,
        "dims": index.card.dims,
        "similarity": "dot_product",
        "index_options.type": index_type,
    }
    wrong = tuple(f"{name} is {held[name]} instead of {value}" for name, value in wanted.items() if held[name] != value)
    return Check(
        name="mapping",
        passed=not wrong,
        says=f"{len(wrong)} of {len(wanted)} properties of the vectors are not as expected"
        if wrong
        else f"the vectors are of {index.card.dims} dimensions, in an index of type {index_type}",
        examples=wrong,
    )


def check_windows(
    index: Index, landed: Mapping[Window, Manifest], lines: Mapping[Window, Line], *, began: datetime, now: datetime
) -> Check:
    """Whether the index's encoder has embedded every landed window of listings.

    Args:
        index: names the encoder.
        landed: the windows' manifests.
        lines: the encoder's ledger.
        began: when the first load of the index did: what landed later is left to its own run, within `LANDED_PATIENCE`, and
            so is a window that was replaced after an earlier content of it was embedded.
        now: the current time, timezone-aware.
    """
    open_windows = not_embedded({window: manifest.identity for window, manifest in landed.items()}, lines.values())
    embedded_once = {name.partition("@")[0] for line in lines.values() for name in line.inputs}

    def waits(window: Window) -> bool:
        at = landed[window].created_at
        return (at >= began or window.name in embedded_once) and now - at <= LANDED_PATIENCE

    lacking = [window for window in open_windows if not waits(window)]
    waiting = len(open_windows) - len(lacking)
    says = f"{len(lacking)} of {len(landed)} windows of listings are not embedded by {index.card.encoder_id}"
    if waiting:
        says += f", and {waiting} landed lately and are left to their own runs"
    if lacking:
        says += f": embed them with --each_landed --encoder {index.card.encoder_source}"
    return Check(
        name="windows",
        passed=not lacking,
        says=says,
        measured=len(lacking),
        threshold=0,
        examples=tuple(map(str, lacking[:EXAMPLES])),
    )


def embedded_until(lines: Mapping[Window, Line]) -> datetime:
    """The end of the newest window that was embedded; without one, the end of time: then nothing is known to be newer."""
    ends = (window.end for window, line in lines.items() if line.completed_by is not None)
    return max(ends, default=datetime.max.replace(tzinfo=UTC))


def check_size(search_index: SearchIndex, index: Index, least: float) -> Check:
    """Whether an index holds about as many searchable documents as the live one."""
    live = search_index.live()
    if live is None or live.name == index.name:
        which = "this index is live" if live else "no index is live"
        return Check(name="size", passed=None, says=f"left out: {which}, so there is none to compare it with")
    there, here = (search_index.counts(name)["searchable"] for name in (live.name, index.name))
    return Check(
        name="size",
        passed=here >= least * there,
        says=f"{here:,} documents are searchable, and {there:,} in the live index {live.name}",
        measured=here / there if there else None,
        threshold=least,
    )
