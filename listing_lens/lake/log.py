"""Logs in the lake: entries that services append as they happen, and that jobs later bring into windows.

    <root>/logs/<name>/day=<date>/<time>-<writer>-<random>.jsonl

A file is written once, atomically, with a batch of entries, under the time at which it is written. Readers see whole batches
or none. Entries are JSON objects with their own time in `at`, which is not after the file's.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import orjson

from listing_lens.errors import LensError
from listing_lens.lake.windows import Lake

_TIME = "%Y%m%dT%H%M%S%fZ"
Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Log:
    """A log of a lake, by name."""

    lake: Lake
    name: str

    @property
    def folder(self) -> str:
        return f"{self.lake.root}/logs/{self.name}"

    def append(self, entries: Sequence[Entry], now: datetime, writer: str) -> str:
        """Write a batch of entries, durably. Returns the file's path.

        Args:
            entries: each with `at`, a time in ISO format with its zone.
            now: the time.
            writer: names the process; letters, digits and dots.
        """
        moment = now.astimezone(UTC)
        # No two batches are written to the same file, not even by one process in one moment.
        name = f"{moment:{_TIME}}-{writer}-{secrets.token_hex(4)}.jsonl"
        path = f"{self.folder}/day={moment.date()}/{name}"
        self.lake.write_bytes(
            path, b"".join(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE) for entry in entries)
        )
        return path

    def files(self, since: datetime, until: datetime) -> list[str]:
        """The files that were written in [since, until), by time."""
        first, last = (moment.astimezone(UTC).date() for moment in (since, until))
        found = []
        for day in self.days():
            if first <= day <= last:
                files = self.lake.files(f"{self.folder}/day={day}", ".jsonl")
                found += [path for path in files if since <= written_at(path) < until]
        return found

    def read(self, path: str) -> Iterator[dict[str, Any]]:
        """The entries of a file. Raises LensError when it is not a file of this log."""
        for number, line in enumerate(self.lake.read_bytes(path).splitlines(), start=1):
            try:
                yield orjson.loads(line)
            except orjson.JSONDecodeError as err:
                raise LensError(f"{path}, line {number}, is not JSON ({err}): remove the file, or mend it") from err

    def days(self) -> list[date]:
        """The days of which there is something, in order."""
        names = [name for name in self.lake.folders(self.folder) if name.startswith("day=")]
        return [date.fromisoformat(name.removeprefix("day=")) for name in names]

    def forget(self, before: date) -> int:
        """Remove all that was written on days before a date. Returns the number of days."""
        old = [day for day in self.days() if day < before]
        for day in old:
            self.lake.remove_folder(f"{self.folder}/day={day}")
        return len(old)


def written_at(path: str) -> datetime:
    """When a file of a log was written."""
    stamp = path.rsplit("/", 1)[-1].partition("-")[0]
    return datetime.strptime(stamp, _TIME).replace(tzinfo=UTC)
