"""Windows: every listing falls into exactly one, whatever the zone they were written in, and no gap goes unseen."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listing_lens.errors import LensError
from listing_lens.lake.window import Window, gaps

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def hours(start: float, end: float) -> Window:
    return Window(EPOCH + timedelta(hours=start), EPOCH + timedelta(hours=end))


seconds = st.integers(-(10**9), 2 * 10**9)
zones = st.integers(-14, 14).map(lambda offset: timezone(timedelta(hours=offset)))
moments = st.builds(lambda second, zone: (EPOCH + timedelta(seconds=second)).astimezone(zone), seconds, zones)
windows = (
    st.tuples(moments, moments).filter(lambda pair: pair[0] != pair[1]).map(lambda pair: Window(min(pair), max(pair)))
)
small_windows = st.tuples(st.integers(0, 40), st.integers(1, 9)).map(lambda pair: hours(pair[0], pair[0] + pair[1]))


class TestDoor:
    @pytest.mark.parametrize(
        ("start", "end", "sentence"),
        [
            pytest.param(None, "2026-01-01T00:00:00Z", "no data interval", id="no start"),
            pytest.param("2026-01-01T00:00:00Z", "", "no data interval", id="no end"),
            pytest.param("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "is empty", id="empty"),
            pytest.param("2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z", "is empty", id="backwards"),
            pytest.param("2026-01-01T01:00:00+01:00", "2026-01-01T00:00:00Z", "is empty", id="empty across zones"),
            pytest.param("2026-01-01", "2026-01-02", "no time zone", id="no zone"),
            pytest.param("2026-01-01T00:00:00.5Z", "2026-01-02T00:00:00Z", "fraction of a second", id="half a second"),
            pytest.param("yesterday", "today", "write times as", id="words"),
        ],
    )
    def test_refuses_what_is_no_window(self, start: str | None, end: str | None, sentence: str) -> None:
        with pytest.raises(LensError, match=sentence):
            Window.parse(start, end)

    def test_bounds_are_kept_in_utc(self) -> None:
        window = Window.parse("2026-01-01T09:00:00+09:00", "2026-01-01T01:00:00Z")
        assert window == hours(0, 1)
        assert (window.start.tzinfo, str(window)) == (UTC, "[2026-01-01 00:00:00Z, 2026-01-01 01:00:00Z)")

    def test_the_end_is_not_inside(self) -> None:
        assert EPOCH in hours(0, 1)
        assert EPOCH + timedelta(hours=1) not in hours(0, 1)
        assert not hours(0, 1).overlaps(hours(1, 2))
        assert hours(0, 1).overlaps(hours(0.5, 2))


class TestName:
    @given(windows)
    def test_comes_back(self, window: Window) -> None:
        assert Window.from_name(window.name) == window
        assert Window.parse(window.start.isoformat(), window.end.isoformat()) == window

    @given(windows, windows)
    def test_sorts_by_time(self, one: Window, other: Window) -> None:
        assert (one.name < other.name) == (one < other)

    def test_is_this(self) -> None:
        assert hours(0, 1.5).name == "20260101T000000Z_20260101T013000Z"


class TestSplit:
    @given(window=small_windows, minutes=st.integers(7, 700))
    def test_parts_follow_each_other_and_are_the_whole(self, window: Window, minutes: int) -> None:
        step = timedelta(minutes=minutes)
        parts = list(window.split(step))
        assert (parts[0].start, parts[-1].end) == (window.start, window.end)
        assert all(one.end == other.start for one, other in pairwise(parts))
        assert all(part.end - part.start == step for part in parts[:-1])
        assert parts[-1].end - parts[-1].start <= step

    @pytest.mark.parametrize("step", [timedelta(0), timedelta(hours=-1)], ids=["zero", "backwards"])
    def test_a_step_that_goes_nowhere_is_refused(self, step: timedelta) -> None:
        with pytest.raises(LensError, match="is empty"):
            list(hours(0, 3).split(step))


class TestGaps:
    @given(wanted=small_windows, present=st.lists(small_windows, max_size=8))
    def test_every_hour_is_covered_or_in_exactly_one_gap(self, wanted: Window, present: list[Window]) -> None:
        missing = gaps(wanted, present)
        for part in wanted.split(timedelta(hours=1)):
            covered = any(part.start in window for window in present)
            assert sum(part.start in gap for gap in missing) == (0 if covered else 1)
        assert all(wanted.start <= gap.start and gap.end <= wanted.end for gap in missing)
        assert all(one.end < other.start for one, other in pairwise(missing))

    @given(wanted=small_windows, present=st.lists(small_windows, max_size=8))
    def test_filling_the_gaps_leaves_none(self, wanted: Window, present: list[Window]) -> None:
        assert gaps(wanted, [*present, *gaps(wanted, present)]) == []

    @pytest.mark.parametrize(
        ("present", "missing"),
        [
            pytest.param([], [hours(0, 4)], id="nothing"),
            pytest.param([hours(0, 4)], [], id="exactly"),
            pytest.param([hours(-1, 5)], [], id="more"),
            pytest.param([hours(2, 4), hours(0, 2)], [], id="two that meet, unordered"),
            pytest.param([hours(0, 3), hours(1, 2), hours(3, 4)], [], id="one within another"),
            pytest.param([hours(1, 2)], [hours(0, 1), hours(2, 4)], id="the middle"),
            pytest.param([hours(-2, 0), hours(4, 5)], [hours(0, 4)], id="neighbours"),
        ],
    )
    def test_by_hand(self, present: list[Window], missing: list[Window]) -> None:
        assert gaps(hours(0, 4), present) == missing
