"""A log's files: whole batches, found by when they were written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from listing_lens.errors import LensError
from listing_lens.lake.log import Log, written_at
from listing_lens.lake.windows import Lake

LATE = datetime(2026, 11, 1, 23, 59, 59, 500_000, tzinfo=UTC)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(Lake(str(tmp_path)), "searches")


def entry(number: int) -> dict[str, object]:
    return {"number": number, "at": LATE.isoformat(), "text": "写真"}


def test_gives_back_what_was_appended(log: Log) -> None:
    path = log.append([entry(1), entry(2)], LATE, "host.1")
    assert list(log.read(path)) == [entry(1), entry(2)]
    assert written_at(path) == LATE


def test_finds_files_by_time_over_days(log: Log) -> None:
    times = [LATE + timedelta(seconds=n) for n in range(4)]
    paths = [log.append([entry(n)], time, "host.1") for n, time in enumerate(times)]
    assert log.files(times[1], times[3]) == paths[1:3]
    assert log.files(times[0] - timedelta(days=3), times[3] + timedelta(days=3)) == paths
    assert log.files(times[3] + timedelta(days=1), times[3] + timedelta(days=3)) == []


def test_two_writers_of_one_moment_have_a_file_each(log: Log) -> None:
    one, other = log.append([entry(1)], LATE, "host.1"), log.append([entry(2)], LATE, "host.2")
    assert log.files(LATE, LATE + timedelta(seconds=1)) == [one, other]


def test_forgets_whole_days(log: Log) -> None:
    log.append([entry(1)], LATE, "host.1")
    kept = log.append([entry(2)], LATE + timedelta(seconds=1), "host.1")
    assert log.forget((LATE + timedelta(days=1)).date()) == 1
    assert log.files(LATE - timedelta(days=1), LATE + timedelta(days=1)) == [kept]


def test_names_a_line_that_is_damaged(log: Log) -> None:
    path = log.append([entry(1)], LATE, "host.1")
    Path(path).write_bytes(Path(path).read_bytes() + b'{"half')
    with pytest.raises(LensError, match=r"line 2, is not JSON"):
        list(log.read(path))
