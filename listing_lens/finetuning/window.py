"""The window of listings that a fine-tuning trains on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta

from listing_lens.errors import LensError
from listing_lens.lake.window import Window

# By default, a run trains on the listings of three months.
_REACH = timedelta(weeks=13)


def training_window(landed: Sequence[Window], start: date | None, end: date | None) -> Window:
    """The window whose listings are trained on: from the first day up to the end, exclusive.

    A bound that is not given comes from the landed windows of listings: the last one's end, and the first one's start,
    but no more than three months before the end.

    Raises:
        LensError: nothing has landed, or the interval is empty.
    """
    if not landed and (start is None or end is None):
        raise LensError("no listings have landed in the lake: import them with `lens catalog import`")
    until = _midnight(end) if end else max(window.end for window in landed)
    since = _midnight(start) if start else max(min(window.start for window in landed), until - _REACH)
    return Window(since, until)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
