"""Writing a log in batches: what `store` has answered is in the lake; what cannot be written yet is written later, in order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from listing_lens.lake.log import Log
from listing_lens.lake.windows import Lake
from listing_lens.serving.batched_log import BatchedLog, File
from listing_lens.serving.limits import UnavailableError


def entries(folder: Path) -> list[int]:
    """The numbers of the entries in the lake, in the order of the files."""
    files = sorted(Path(folder, "logs").rglob("*.jsonl"))
    return [json.loads(line)["n"] for file in files for line in file.read_text().splitlines()]


def log_in(folder: Path, **options: int) -> BatchedLog:
    return BatchedLog(Log(Lake(str(folder)), "test"), 0.0, **options)


def entry(n: int) -> dict[str, object]:
    return {"n": n, "at": "2026-11-05T12:00:00+00:00"}


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


def test_what_is_stored_is_in_the_lake_when_it_is_answered(tmp_path: Path) -> None:
    async def test() -> None:
        log = log_in(tmp_path)
        writing = asyncio.create_task(log.run())
        await asyncio.gather(*(log.store([entry(n)]) for n in range(20)))
        assert sorted(entries(tmp_path)) == list(range(20))
        writing.cancel()

    run(test)


def test_what_is_noted_is_written_with_its_file_at_the_latest_by_the_last_flush(tmp_path: Path) -> None:
    async def test() -> None:
        log = log_in(tmp_path)
        log.note(entry(1), File(f"{tmp_path}/logs/test/photo.jpg", b"a photo"))
        assert not entries(tmp_path)
        await log.flush()
        assert entries(tmp_path) == [1]
        assert Path(tmp_path, "logs/test/photo.jpg").read_bytes() == b"a photo"

    run(test)


def test_what_cannot_be_written_is_said_and_written_later_in_order(tmp_path: Path) -> None:
    async def test() -> None:
        lake = tmp_path / "lake"
        # A file where the lake's folder should be: nothing can be written.
        lake.write_text("")
        log = log_in(lake)
        log.note(entry(1))
        storing = asyncio.create_task(log.store([entry(2)]))
        await asyncio.sleep(0)
        await log.flush()
        with pytest.raises(UnavailableError, match="cannot be written to just now"):
            await storing
        lake.unlink()
        log.note(entry(3))
        await log.flush()
        assert entries(lake) == [1, 2, 3]

    run(test)


def test_only_so_many_wait_and_what_is_lost_is_counted(tmp_path: Path) -> None:
    async def test() -> None:
        log = log_in(tmp_path, most_kept=2)
        for n in range(5):
            log.note(entry(n))
        assert log.lost == 3
        with pytest.raises(UnavailableError, match="cannot be written to"):
            await log.store([entry(9)])
        await log.flush()
        assert entries(tmp_path) == [0, 1]

    run(test)


def test_a_flush_that_is_cancelled_writes_what_it_had_once(tmp_path: Path) -> None:
    async def test() -> None:
        log = log_in(tmp_path)
        log.note(entry(1))
        flushing = asyncio.create_task(log.flush())
        await asyncio.sleep(0)
        flushing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await flushing
        await log.flush()
        assert entries(tmp_path) == [1]

    run(test)
