"""The log of searches: what becomes of it does not depend on the order or the number of its entries, and nothing is lost.

And what is forgotten: all of a day, with its photos and sessions, and nothing that came from elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import FIRST, NOW, SECOND

from listing_lens.errors import LensError
from listing_lens.lake.records import SESSION_SCHEMA, Query, Session, to_table
from listing_lens.lake.searches import (
    EVENT_KINDS,
    FROM_LOG,
    SEARCH_KINDS,
    Event,
    Forgotten,
    Search,
    forget_searches,
    kept_since,
    photo_name,
    read_entry,
    search_log,
    session_of,
    why_not_to_land,
)
from listing_lens.lake.window import Window
from listing_lens.lake.windows import SESSIONS, Lake

NOON = FIRST.start + timedelta(hours=12)
KINDS = ("impression", "tap", "view", "purchase")


def search_id(at: datetime, number: int = 0) -> str:
    return f"{int(1000 * at.timestamp()):012x}{number:020x}"


ID = search_id(NOON)
# Times in and around the window, to its very bounds.
TIMES = st.sampled_from(
    [FIRST.start - timedelta(microseconds=1), FIRST.start, NOON, FIRST.end - timedelta(microseconds=1), FIRST.end]
)
ITEMS = st.sampled_from("abcde")
SEARCHES = st.builds(
    Search,
    st.just(ID),
    TIMES,
    st.sampled_from(["photo", "text", "similar"]),
    st.lists(ITEMS, max_size=4).map(tuple),
    st.integers(0, 2),
    st.sampled_from(["", "red shoes"]),
    st.sampled_from([0.25, 1.0]),
)
EVENTS = st.builds(Event, st.just(ID), st.sampled_from(KINDS), ITEMS)
LOGGED = st.lists(EVENTS | SEARCHES, max_size=12)
# Of these, no search is in the log: whoever told of them may have made them up.
OTHER_IDS = TIMES.map(search_id) | st.just("f" * 32)


def join(logged: Sequence[Search | Event]) -> tuple[Session | None, Mapping[str, int]]:
    return session_of(ID, logged, FIRST)


class TestSessions:
    @given(LOGGED, st.randoms())
    def test_order_does_not_matter(self, logged: list[Search | Event], random: Random) -> None:
        shuffled = list(logged)
        random.shuffle(shuffled)
        assert join(shuffled) == join(logged)

    @given(LOGGED, st.data())
    def test_repeated_entries_are_only_counted(self, logged: list[Search | Event], data: st.DataObject) -> None:
        again = data.draw(st.lists(st.sampled_from(logged), max_size=5)) if logged else []
        session, counts = join(logged)
        repeated, more = join([*logged, *again])
        assert repeated == session
        events = sum(isinstance(one, Event) for one in again)
        extra = {"events": events, "events_repeated": events}
        extra |= {name: len(again) - events for name in ("searches", "searches_repeated")}
        assert +Counter(more) == +(Counter(counts) + Counter(extra))

    @given(st.tuples(st.just(ID), LOGGED) | st.tuples(OTHER_IDS, st.lists(EVENTS)))
    def test_every_entry_is_counted_by_one_kind(self, of: tuple[str, list[Search | Event]]) -> None:
        search_id, logged = of
        session, counts = session_of(search_id, logged, FIRST)
        assert counts["searches"] == sum(isinstance(one, Search) for one in logged)
        assert counts["events"] == sum(isinstance(one, Event) for one in logged)
        assert counts["searches"] == counts["rows"] + sum(counts[kind] for kind in SEARCH_KINDS)
        assert counts["events"] == sum(counts[kind] for kind in EVENT_KINDS)
        assert counts["rows"] == (session is not None)
        assert counts.keys() <= {"rows", "searches", "events", *SEARCH_KINDS, *EVENT_KINDS}

    @given(LOGGED)
    def test_a_session_is_sound_and_of_the_window(self, logged: list[Search | Event]) -> None:
        session, _ = join(logged)
        if session:
            assert session.sound
            assert session.searched_at in FIRST

    @given(SEARCHES, st.lists(EVENTS))
    def test_just_what_was_tapped_or_bought_is_tapped(self, search: Search, events: list[Event]) -> None:
        session, _ = join([search, *events])
        if session:
            chosen = {event.item_id for event in events if event.kind in ("tap", "purchase")}
            assert dict(zip(session.shown, session.tapped, strict=True)) == {
                item: item in chosen for item in search.shown
            }

    def test_a_search_has_its_place_by_its_own_time_and_its_photo_by_its_id(self) -> None:
        """A search that began right before midnight, and was logged after it."""
        began = FIRST.end - timedelta(milliseconds=5)
        search = Search(search_id(began), SECOND.start, "photo", ("a", "b", "a"), 2)
        taps = [Event(search.search_id, "tap", "a")]
        assert session_of(search.search_id, [search, *taps], FIRST)[0] is None
        session, counts = session_of(search.search_id, [search, *taps], SECOND)
        photos = f"day=2026-11-01/photos/{search.search_id}.jpg", f"day=2026-11-01/photos/{search.search_id}-1.jpg"
        assert session == Session(search.search_id, SECOND.start, Query(photos), ("a", "b"), (True, False))
        assert +Counter(counts) == {"searches": 1, "rows": 1, "events": 1, "events_chosen": 1}

    @pytest.mark.parametrize(
        ("logged", "kinds"),
        [
            (
                [Search(ID, NOON, "similar", ("a",), 0), Event(ID, "tap", "a")],
                ["searches_similar", "events_similar"],
            ),
            ([Search(ID, NOON, "photo", (), 1)], ["searches_nothing_shown"]),
            ([Search(ID, NOON, "photo", ("a",), 0)], ["searches_without_query"]),
            ([Search(ID, SECOND.start, "photo", ("a",), 1)], ["searches_elsewhere"]),
            ([Event(ID, "tap", "a")], ["events_unknown"]),
            ([Search(ID, NOON, "photo", ("a",), 1), Event(ID, "tap", "b")], ["rows", "events_not_shown"]),
            ([Search(ID, NOON, "photo", ("a",), 1), Event(ID, "view", "a")], ["rows", "events_seen"]),
        ],
        ids=["similar", "nothing shown", "without photo", "elsewhere", "unknown", "not shown", "seen"],
    )
    def test_what_is_not_used_is_counted_by_reason(self, logged: list[Search | Event], kinds: list[str]) -> None:
        counts = Counter(join(logged)[1])
        del counts["searches"], counts["events"]
        assert +counts == Counter(kinds)

    def test_events_of_other_windows_are_not_unknown(self) -> None:
        """The log of a window also tells of taps on what was shown before and after it."""
        for of in (search_id(FIRST.start - timedelta(minutes=1)), search_id(FIRST.end), "f" * 32):
            assert +Counter(session_of(of, [Event(of, "tap", "a")], FIRST)[1]) == {"events": 1, "events_elsewhere": 1}


def test_entries_that_are_neither_are_refused() -> None:
    with pytest.raises(LensError, match="of kind 'search' and search 'x', has no 'at': remove its line"):
        read_entry({"kind": "search", "search_id": "x"})
    with pytest.raises(LensError, match="has no 'kind'"):
        read_entry({"search_id": "x", "item_id": "y"})


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path))


def log_something(lake: Lake, at: datetime) -> str:
    """Log a search with a photo. Returns the photo's path."""
    log, of = search_log(lake), search_id(at)
    photo = f"{log.folder}/{photo_name(of)}"
    lake.write_bytes(photo, b"a photo")
    log.append([{"kind": "search", "search_id": of, "at": at.isoformat()}], at, "host.1")
    return photo


def land(lake: Lake, window: Window, parameters: Mapping[str, object]) -> None:
    lake.write_table(SESSIONS, window, SESSION_SCHEMA.empty_table(), NOW, parameters=dict(parameters))


class TestWhetherToLand:
    def test_what_was_logged_is_landed_and_landed_again(self, lake: Lake) -> None:
        log_something(lake, NOON)
        assert why_not_to_land(lake, FIRST) is None
        land(lake, FIRST, FROM_LOG)
        assert why_not_to_land(lake, FIRST) is None

    def test_sessions_from_elsewhere_stay_whatever_part_of_it_they_cover(self, lake: Lake) -> None:
        log_something(lake, NOON)
        hour = Window(NOON, NOON + timedelta(hours=1))
        land(lake, hour, {"catalog": "made"})
        assert why_not_to_land(lake, FIRST) == (
            f"sessions of {hour} did not come from the log of searches: they are left as they are"
        )

    def test_a_day_without_a_log_is_no_empty_day(self, lake: Lake) -> None:
        log_something(lake, SECOND.start)
        assert (why_not_to_land(lake, FIRST) or "").startswith("nothing is in the log of searches of [2026-11-01 ")
        assert why_not_to_land(lake, SECOND) is None


class TestForgetting:
    def test_photos_sessions_and_log_go_together(self, lake: Lake) -> None:
        old, young = log_something(lake, NOON), log_something(lake, SECOND.start)
        for window in (FIRST, SECOND):
            land(lake, window, FROM_LOG)
        assert forget_searches(lake, SECOND.start.date()) == Forgotten(days=1, windows=1)
        assert (lake.exists(old), lake.exists(young)) == (False, True)
        assert lake.windows(SESSIONS) == [SECOND]
        assert search_log(lake).days() == [SECOND.start.date()]
        assert lake.folders(f"{lake.root}/{SESSIONS}") == [f"window={SECOND.name}"]
        assert forget_searches(lake, SECOND.start.date()) == Forgotten(days=0, windows=0)

    def test_sessions_from_elsewhere_are_kept(self, lake: Lake) -> None:
        land(lake, FIRST, {})
        assert forget_searches(lake, date(2100, 1, 1)) == Forgotten(days=0, windows=0)
        assert lake.windows(SESSIONS) == [FIRST]

    def test_of_a_window_of_days_no_session_outlives_its_photo(self, lake: Lake) -> None:
        log_something(lake, NOON)
        land(lake, Window(FIRST.start, SECOND.end), FROM_LOG)
        assert forget_searches(lake, SECOND.start.date()) == Forgotten(days=1, windows=1)

    @pytest.mark.parametrize(
        ("days", "hour", "since"), [(30, 23, date(2026, 11, 1)), (1, 0, date(2026, 11, 30)), (0, 12, date(2026, 12, 2))]
    )
    def test_searches_are_kept_for_as_long_as_is_said(self, days: int, hour: int, since: date) -> None:
        assert kept_since(days, datetime(2026, 12, 1, hour, tzinfo=UTC)) == since


def test_a_session_fits_the_lake(lake: Lake) -> None:
    session, _ = join([Search(ID, NOON, "photo", ("a", "b"), 1), Event(ID, "purchase", "b")])
    table = to_table([session], SESSION_SCHEMA)
    lake.write_table(SESSIONS, FIRST, table, NOW)
    assert [row["tapped"] for batch in lake.read(SESSIONS, [FIRST]) for row in batch.to_pylist()] == [[False, True]]
