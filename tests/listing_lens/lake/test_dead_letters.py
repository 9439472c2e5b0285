"""Dead letters: each says what failed and why, is tried again while that can help, and goes when it is answered."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tiny import FIRST, SECOND, listing

from listing_lens.lake.dead_letters import MOST_ATTEMPTS, DeadLetters, Letter
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.records import Refused
from listing_lens.lake.windows import Lake

NOW = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture
def letters(tmp_path: Path) -> DeadLetters:
    return DeadLetters(Embeddings(Lake(str(tmp_path)), "small-12345678"))


def letter(item_id: str, *, minute: int = 0, attempts: int = 1, transient: bool = True) -> Letter:
    item = listing(item_id, minute=minute, seller_id="s", category=("A", "Ünïcode ✓"))
    return Letter.of_listing(
        item, FIRST, "fetch", "the server answered 503", transient=transient, attempts=attempts, now=NOW
    )


def by_key(letters: DeadLetters) -> dict[str, Letter]:
    return {found.key: found for found in letters.letters()}


class TestKeeping:
    def test_gives_back_what_was_added(self, letters: DeadLetters) -> None:
        assert by_key(letters) == {}
        refused = Letter.of_refused(Refused("", "its item_id is empty", "{}"), FIRST, NOW)
        letters.add([letter("a"), refused])
        assert by_key(letters) == {"a": letter("a"), refused.key: refused}
        assert refused.listing is None

    def test_takes_the_letter_of_the_newer_version(self, letters: DeadLetters) -> None:
        letters.add([letter("a", minute=5)])
        letters.add([letter("a", minute=3, attempts=7)])
        assert by_key(letters)["a"] == letter("a", minute=5)
        letters.add([letter("a", minute=5, attempts=2), letter("a", minute=4)])
        assert by_key(letters)["a"] == letter("a", minute=5, attempts=2)

    def test_tells_invalid_rows_apart(self, letters: DeadLetters) -> None:
        rows = [Refused("", "its item_id is empty", row) for row in ('{"title": "a"}', '{"title": "b"}')]
        made = [Letter.of_refused(row, window, NOW) for row in rows for window in (FIRST, SECOND)]
        letters.add(made)
        letters.add(made)
        assert len(by_key(letters)) == 4


class TestSettling:
    def test_removes_what_is_answered_by_this_version_or_a_later_one(self, letters: DeadLetters) -> None:
        letters.add([letter("same"), letter("later"), letter("earlier", minute=5), letter("other")])
        refused = Letter.of_refused(Refused("same", "its status is none", "{}"), FIRST, NOW)
        letters.add([refused])
        answered = {
            "same": letter("same").version,
            "later": letter("later", minute=9).version,
            "earlier": letter("earlier", minute=4).version,
        }
        assert letters.settle(answered) == 2
        assert by_key(letters).keys() == {"earlier", "other", refused.key}

    def test_of_nothing_removes_nothing(self, letters: DeadLetters) -> None:
        assert letters.settle({}) == 0
        letters.add([letter("a")])
        assert letters.settle({}) == 0
        assert by_key(letters)


class TestForgetting:
    def test_removes_invalid_rows_that_a_window_does_not_hold_any_more(self, letters: DeadLetters) -> None:
        rows = {
            (name, window): Letter.of_refused(Refused(name, "its status is none", name), window, NOW)
            for name in ("mended", "still")
            for window in (FIRST, SECOND)
        }
        letters.add([*rows.values(), letter("a")])
        later = NOW + timedelta(hours=1)
        letters.add([replace(rows["still", FIRST], failed_at=later)])
        letters.forget_refused([FIRST], later)
        assert by_key(letters).keys() == {"a"} | {row.key for row in rows.values()} - {rows["mended", FIRST].key}


class TestTrying:
    @pytest.mark.parametrize(
        ("attempts", "pause"),
        [(1, timedelta(minutes=15)), (2, timedelta(minutes=30)), (5, timedelta(hours=4)), (7, timedelta(hours=16))],
        ids=["once", "twice", "five times", "seven times"],
    )
    def test_is_due_after_a_pause_that_doubles(self, attempts: int, pause: timedelta) -> None:
        tried = letter("a", attempts=attempts)
        assert not tried.is_due(NOW + pause - timedelta(microseconds=1))
        assert tried.is_due(NOW + pause)

    def test_has_an_end(self) -> None:
        assert not letter("a", attempts=MOST_ATTEMPTS).is_due(NOW + timedelta(days=365))

    def test_is_not_done_when_it_cannot_help(self) -> None:
        assert not letter("a", transient=False).is_due(NOW + timedelta(days=365))
        assert not replace(letter("a"), transient=False, listing=None).is_due(NOW + timedelta(days=365))
