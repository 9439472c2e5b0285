"""Progress: what a job writes into its log is what the terminal reads back, among any other lines."""

from __future__ import annotations

import logging
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listing_lens.progress import Progress, advance

# A stage begins and ends with a letter or a digit; spaces, colons and dashes stand in between, as in a time.
stages = st.from_regex(r"[a-zA-Z0-9_]([a-zA-Z0-9_ :-]{0,20}[a-zA-Z0-9_])?", fullmatch=True)
counts = st.integers(0, 10**12)
reports = st.builds(Progress, stages, counts, st.none() | counts)


@given(
    reports, st.sampled_from(["", "2026-01-31 12:00:00,123 INFO listing_lens.progress: "]), st.sampled_from(["", "\n"])
)
def test_what_is_written_is_read(report: Progress, before: str, after: str) -> None:
    assert Progress.parse(f"{before}{report}{after}") == report


@pytest.mark.parametrize(
    ("report", "line"),
    [
        (Progress("embed", 1234, 56789), "progress: embed: 1,234 of 56,789"),
        (Progress("embedded 2026-01-31 12:00", 7, None), "progress: embedded 2026-01-31 12:00: 7"),
        (Progress("load", 0, 0), "progress: load: 0 of 0"),
    ],
    ids=["with a total", "with a time", "nothing to do"],
)
def test_a_person_can_read_it(report: Progress, line: str) -> None:
    assert str(report) == line
    assert Progress.parse(line) == report


@pytest.mark.parametrize(
    "line",
    [
        "",
        "INFO starting",
        "progress: embed",
        "progress: embed: ",
        "progress: embed: ,",
        "progress: embed: 5 of ,",
        "progress: embed: many of 7",
        "progress: embed: 5 of 7 listings",
        "progress: embed: -5",
    ],
)
def test_other_lines_are_passed_over(line: str) -> None:
    assert Progress.parse(line) is None


def test_advance_adds_up_over_threads(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "listing_lens.progress")
    stage = "test_advance_adds_up_over_threads"
    threads = [threading.Thread(target=lambda: [advance(stage, 3, 1200) for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = [Progress.parse(record.getMessage()) for record in caplog.records]
    assert seen == [Progress(stage, 3 * n, 1200) for n in range(1, 401)]
