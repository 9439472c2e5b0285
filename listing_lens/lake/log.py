"""Logs in the lake: entries that services append as they happen, and that jobs later bring into windows.

    <root>/logs/<name>/day=<date>/<time>-<writer>.jsonl

A file is written once, atomically, with a batch of entries, under the time at which it is written. Readers see whole batches
or none. Entries are JSON objects with their own time in `at`, which is not after the file's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
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
            writer: names the process, so that two never write the same file; letters, digits and dots.
        """
        path = f"{self.folder}/day={now.astimezone(UTC).date()}/{now.astimezone(UTC):{_TIME}}-{writer}.jsonl"
        self.lake.write_bytes(
            path, b"".join(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE) for entry in entries)
        )
        return path

    def files(self, since: datetime, until: datetime) -> list[str]:
        """The files that were written in [since, until), by time."""
        days = (until.astimezone(UTC).date() - since.astimezone(UTC).date()).days
        found = []
        for day in (since.astimezone(UTC).date() + timedelta(days=n) for n in range(days + 1)):
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
