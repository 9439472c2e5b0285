"""The ledger: a window is embedded from the input that is there now, and only the attempt that began last may say so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from listing_lens.errors import LensError
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.ledger import Completed, Ledger, Line, input_of, not_embedded
from listing_lens.lake.window import Window
from listing_lens.lake.windows import Lake

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def hours(start: int, end: int) -> Window:
    midnight = datetime(2026, 1, 1, tzinfo=UTC)
    return Window(midnight + timedelta(hours=start), midnight + timedelta(hours=end))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Embeddings(Lake(str(tmp_path)), "small-12345678"))


def complete(ledger: Ledger, attempt: str, *windows: Window, inputs: tuple[str, ...] = ("one@1",)) -> list[Window]:
    completed = {window: Completed(inputs, {"read": 3, "newest": 2}) for window in windows}
    return ledger.complete(completed, attempt, {"encoder_id": "small-12345678"}, NOW)


class TestLines:
    def test_of_a_new_ledger_are_none(self, ledger: Ledger) -> None:
        assert ledger.lines() == {}

    def test_say_what_an_attempt_did(self, ledger: Ledger) -> None:
        ledger.begin([hours(0, 1)], "a", NOW)
        [line] = ledger.lines().values()
        assert (line.state, line.attempt, line.inputs, line.completed_by) == ("running", "a", (), None)
        assert complete(ledger, "a", hours(0, 1), inputs=("one@1", "two@2")) == [hours(0, 1)]
        assert ledger.lines() == {
            hours(0, 1): Line(
                hours(0, 1),
                "a",
                NOW,
                completed_by="a",
                completed_at=NOW,
                inputs=("one@1", "two@2"),
                counts={"read": 3, "newest": 2},
                parameters={"encoder_id": "small-12345678"},
            )
        }
        assert ledger.lines()[hours(0, 1)].state == "embedded"

    def test_come_by_time(self, ledger: Ledger) -> None:
        ledger.begin([hours(5, 6), hours(0, 1), hours(0, 24)], "a", NOW)
        assert list(ledger.lines()) == [hours(0, 1), hours(0, 24), hours(5, 6)]


class TestAttempts:
    def test_that_were_overtaken_complete_nothing(self, ledger: Ledger) -> None:
        ledger.begin([hours(0, 1)], "a", NOW)
        ledger.begin([hours(0, 1)], "b", NOW)
        with pytest.raises(LensError, match="was taken over by attempt b, which began later: leave it to that one"):
            complete(ledger, "a", hours(0, 1))
        assert ledger.lines()[hours(0, 1)].state == "running"
        complete(ledger, "b", hours(0, 1))
        assert ledger.lines()[hours(0, 1)].completed_by == "b"

    def test_complete_those_windows_that_are_still_theirs(self, ledger: Ledger) -> None:
        ledger.begin([hours(0, 1), hours(1, 2)], "a", NOW)
        ledger.begin([hours(1, 2)], "b", NOW)
        assert complete(ledger, "a", hours(0, 1), hours(1, 2)) == [hours(0, 1)]
        assert [line.state for line in ledger.lines().values()] == ["embedded", "running"]

    def test_leave_what_was_completed_before_until_they_are_completed(self, ledger: Ledger) -> None:
        ledger.begin([hours(0, 1)], "a", NOW)
        complete(ledger, "a", hours(0, 1))
        ledger.begin([hours(0, 1)], "b", NOW)
        line = ledger.lines()[hours(0, 1)]
        assert (line.state, line.inputs, line.completed_by) == ("running", ("one@1",), "a")

    def test_that_never_began_complete_nothing(self, ledger: Ledger) -> None:
        with pytest.raises(LensError, match="was taken over by attempt none"):
            complete(ledger, "a", hours(0, 1))

    @given(st.lists(st.tuples(st.sampled_from(["begin", "complete"]), st.sampled_from("abc")), max_size=7))
    @settings(max_examples=12, deadline=None)
    def test_only_the_last_that_began_can_complete(
        self, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str]]
    ) -> None:
        ledger = Ledger(Embeddings(Lake(str(tmp_path_factory.mktemp("lake"))), "small-12345678"))
        last, completed_by = None, None
        for step, attempt in steps:
            if step == "begin":
                ledger.begin([hours(0, 1)], attempt, NOW)
                last = attempt
                continue
            try:
                complete(ledger, attempt, hours(0, 1))
            except LensError:
                assert attempt != last
            else:
                assert attempt == last
                completed_by = attempt
        line = ledger.lines().get(hours(0, 1))
        assert (line and line.completed_by) == completed_by


class TestNotEmbedded:
    def line(self, window: Window, *inputs: str) -> Line:
        return Line(window, "a", NOW, completed_by="a", completed_at=NOW, inputs=inputs)

    def test_is_what_no_line_has_read(self) -> None:
        landed = {hours(0, 1): "x", hours(1, 2): "y"}
        assert not_embedded(landed, []) == [hours(0, 1), hours(1, 2)]
        assert not_embedded(landed, [self.line(hours(0, 1), input_of(hours(0, 1), "x"))]) == [hours(1, 2)]

    def test_is_what_landed_again(self) -> None:
        lines = [self.line(hours(0, 1), input_of(hours(0, 1), "x"))]
        assert not_embedded({hours(0, 1): "x"}, lines) == []
        assert not_embedded({hours(0, 1): "z"}, lines) == [hours(0, 1)]

    def test_a_day_embedded_by_the_hour_is_embedded_when_all_hours_are(self) -> None:
        day, read = hours(0, 24), input_of(hours(0, 24), "x")
        lines = [self.line(hours(hour, hour + 1), read) for hour in range(23)]
        assert not_embedded({day: "x"}, lines) == [day]
        assert not_embedded({day: "x"}, [*lines, self.line(hours(23, 24), read)]) == []

    def test_an_hour_embedded_by_the_day_is_embedded(self) -> None:
        landed = {hours(hour, hour + 1): f"{hour}" for hour in range(24)}
        read = [input_of(window, identity) for window, identity in landed.items()]
        assert not_embedded(landed, [self.line(hours(0, 24), *read)]) == []

    def test_is_what_is_only_being_read(self) -> None:
        assert not_embedded({hours(0, 1): "x"}, [Line(hours(0, 1), "a", NOW)]) == [hours(0, 1)]
