"""What is counted on the way to a sample, and the check that everything that went in came out somewhere."""

from __future__ import annotations

from collections.abc import Mapping

from listing_lens.errors import LensError
from listing_lens.lake.pairs import TEST_SESSIONS, TRAIN, VALIDATION, VALIDATION_SESSIONS

# Why a listing version is not a candidate.
LEFT_OUT = ("left_out_invalid", "left_out_test_period", "left_out_reserved", "left_out_deleted", "left_out_message")
# Why a pair that was sampled and decoded is left out.
TWINS = ("near_duplicate", "twin_across_split")
# Why a session cannot be used, and why one that was drawn is left out: a product that was tapped is of another part, or a
# photo cannot be read.
SESSION_UNUSABLE = ("malformed", "nothing_tapped", "not_by_one_photo")
SESSION_LEFT_OUT = ("not_held_out", "query_unreadable", "item_unreadable")
# Of the sessions of each kind, those that show nothing from another part.
UNSEEN = {VALIDATION_SESSIONS: "validation_sessions_unseen", TEST_SESSIONS: "test_sessions_unseen"}


def accounted(found: Mapping[str, int], name: str) -> dict[str, int]:
    """All counts, including those that are 0. Raises LensError if they do not add up."""
    unusable, left_out = (
        [f"sessions_{reason}" for reason in reasons] for reasons in (SESSION_UNUSABLE, SESSION_LEFT_OUT)
    )
    stages = (
        ("read", (*LEFT_OUT, "eligible")),
        ("eligible", ("superseded", "candidates")),
        ("candidates", ("test_products", "not_drawn", "drawn")),
        ("drawn", ("dead_lettered", *TWINS, TRAIN, VALIDATION)),
        ("sessions_read", (*unusable, "sessions_sound")),
        ("sessions_sound", ("sessions_not_drawn", "sessions_drawn")),
        ("sessions_drawn", (*left_out, VALIDATION_SESSIONS, TEST_SESSIONS)),
    )
    names = [name for whole, parts in stages for name in (whole, *parts)]
    counts = dict.fromkeys([*names, *UNSEEN.values(), "session_items"], 0) | dict(found)
    for whole, parts in stages:
        if counts[whole] != sum(counts[part] for part in parts):
            raise LensError(
                f"pairs {name}: {counts[whole]} went in as {whole}, "
                f"{sum(counts[part] for part in parts)} came out: {counts}"
            )
    return counts
