"""The log of listings: what has not landed, and landing it without losing or doubling anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import FIRST, SECOND, image_root, land, land_unchecked, listing

from listing_lens.errors import LensError
from listing_lens.indexing.events import TOLERANCE, entry_of
from listing_lens.indexing.listing_log import LANDS_AFTER, ListingLog
from listing_lens.lake.records import Listing
from listing_lens.lake.window import Window
from listing_lens.lake.windows import LISTINGS, Lake

LATER = FIRST.end + LANDS_AFTER
NOON = FIRST.start + timedelta(hours=12)


@pytest.fixture
def log(tmp_path: Path) -> ListingLog:
    return ListingLog.of(Lake(str(tmp_path)))


def told(log: ListingLog, listings: Sequence[Listing], written: datetime) -> None:
    log.log.append([entry_of(one, written) for one in listings], written, "test")


def landed(log: ListingLog) -> list[tuple[str, int, str]]:
    rows = (row for batch in log.lake.read(LISTINGS, [FIRST]) for row in batch.to_pylist())
    return sorted((row["item_id"], row["price"], row["image_uri"]) for row in rows)


def absolute(item_id: str, **changes: object) -> Listing:
    return listing(item_id, image_uri=f"/photos/{item_id}.jpg", **changes)  # type: ignore[arg-type]


class TestLanding:
    def test_takes_what_changed_in_the_window_whenever_it_was_written(self, log: ListingLog) -> None:
        last = FIRST.end - timedelta(seconds=1)
        told(log, [absolute("early", updated_at=FIRST.start)], FIRST.start - TOLERANCE)
        told(log, [absolute("a", price=1, updated_at=NOON)], NOON)
        told(log, [absolute("late", updated_at=last), absolute("next", updated_at=FIRST.end)], last + TOLERANCE)
        assert log.land(FIRST, LATER) == 3
        assert [item_id for item_id, _, _ in landed(log)] == ["a", "early", "late"]

    @given(
        changed=st.lists(st.timedeltas(timedelta(hours=-30), timedelta(hours=50)), min_size=1, max_size=5),
        lateness=st.timedeltas(-TOLERANCE, timedelta(hours=30)),
    )
    def test_takes_each_listing_once_however_late_a_queue_tells_of_it(
        self, changed: list[timedelta], lateness: timedelta
    ) -> None:
        with TemporaryDirectory() as folder:
            log = ListingLog.of(Lake(folder))
            moments = [FIRST.start + hours for hours in changed]
            for n, moment in enumerate(moments):
                told(log, [absolute(f"i{n}", updated_at=moment)], moment + lateness)
            windows = [Window(FIRST.start + timedelta(days=n), FIRST.end + timedelta(days=n)) for n in range(-3, 5)]
            taken = [
                (window, row)
                for window in windows
                if log.land(window, window.end + LANDS_AFTER)
                for batch in log.lake.read(LISTINGS, [window])
                for row in batch.to_pylist()
            ]
            assert sorted(row["item_id"] for _, row in taken) == [f"i{n}" for n in range(len(moments))]
            for window, row in taken:
                # Where it was in time, it is in the window in which it changed.
                assert row["updated_at"] < window.end
                assert row["updated_at"] in window or lateness > TOLERANCE

    def test_is_not_done_before_all_can_have_come(self, log: ListingLog) -> None:
        with pytest.raises(LensError, match="may still come"):
            log.land(FIRST, LATER - timedelta(seconds=1))
        assert not log.lake.windows(LISTINGS)

    def test_of_nothing_is_an_empty_window(self, log: ListingLog) -> None:
        assert log.land(FIRST, LATER) == 0
        assert log.lake.windows(LISTINGS) == [FIRST]

    def test_again_changes_nothing(self, log: ListingLog) -> None:
        told(log, [absolute("a", updated_at=NOON)] * 2, NOON)
        assert log.land(FIRST, LATER) == 1
        before = log.lake.manifest(LISTINGS, FIRST)
        assert log.land(FIRST, LATER + timedelta(hours=1)) == 1
        assert log.lake.manifest(LISTINGS, FIRST) == before

    def test_keeps_what_an_import_has_landed(self, log: ListingLog) -> None:
        land(log.lake, FIRST, [listing("imported", price=7)])
        told(log, [absolute("told", price=8, updated_at=NOON)], NOON)
        log.land(FIRST, LATER)
        assert landed(log) == [
            ("imported", 7, f"{image_root(log.lake)}/imported.jpg"),
            ("told", 8, "/photos/told.jpg"),
        ]

    def test_does_not_drop_rows_that_an_import_should_not_have_landed(self, log: ListingLog) -> None:
        land_unchecked(log.lake, FIRST, [replace(listing("bad"), item_id="")])
        told(log, [absolute("told", updated_at=NOON)], NOON)
        with pytest.raises(LensError, match="no valid listing .*its item_id is empty.*import it again"):
            log.land(FIRST, LATER)


class TestNotLanded:
    def test_is_the_newest_of_each_since_a_day_before_the_last_windows_end(self, log: ListingLog) -> None:
        land(log.lake, SECOND, [])
        for hours, item_id, price in ((-1, "before", 1), (1, "a", 1), (30, "a", 2), (30, "b", 3)):
            moment = FIRST.end + timedelta(hours=hours)
            told(log, [absolute(item_id, price=price, updated_at=moment)], moment)
        now = SECOND.end + timedelta(hours=10)
        assert [(one.item_id, one.price) for one in log.not_landed(now)] == [("a", 2), ("b", 3)]

    def test_is_everything_before_any_window_has_landed(self, log: ListingLog) -> None:
        told(log, [absolute("a", updated_at=NOON)], NOON)
        assert [one.item_id for one in log.not_landed(SECOND.end)] == ["a"]


class TestForgetting:
    def test_never_forgets_what_has_not_landed(self, log: ListingLog) -> None:
        told(log, [absolute("a", updated_at=NOON)], NOON)
        told(log, [absolute("b", updated_at=SECOND.start)], SECOND.start)
        assert log.forget(date(2027, 1, 1)) == 0
        log.land(FIRST, LATER)
        assert log.forget(date(2027, 1, 1)) == 0
        log.land(SECOND, SECOND.end + LANDS_AFTER)
        assert log.forget(date(2027, 1, 1)) == 1
        [path] = log.log.files(FIRST.start, SECOND.end)
        assert [one.item_id for one in log.read(path)] == ["b"]
