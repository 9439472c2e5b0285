"""Writing to a log from a service: entries are written together, about once a second.

Whoever awaits `store` knows that its entries are in the lake. What is only noted is lost if the process is killed before the
next batch is written, and never otherwise: a batch that cannot be written is kept, and written later.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from listing_lens.lake.log import Entry, Log
from listing_lens.serving.limits import UnavailableError

logger = logging.getLogger(__name__)

# Entries that are kept while the lake cannot be written to; with a photo each, some 500 MB.
_MOST_KEPT = 5000


@dataclass(frozen=True)
class File:
    """A file that an entry refers to, which is written before it."""

    path: str
    data: bytes


class BatchedLog:
    """Batches of entries for a log.

    Attributes:
        every_s: how long an entry waits at most, in seconds, while the lake can be written to.
        writer: names this process among those that write to the log.
        lost: entries that were noted while as many were kept as may be.
    """

    def __init__(
        self,
        log: Log,
        every_s: float,
        *,
        most_kept: int = _MOST_KEPT,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.log, self.every_s, self.most_kept, self.lost = log, every_s, most_kept, 0
        self._now, self._sleep = now, sleep
        self.writer = f"{socket.gethostname().replace('-', '.')}.{os.getpid()}"
        self._kept: list[tuple[Entry, tuple[File, ...]]] = []
        self._writing: list[tuple[Entry, tuple[File, ...]]] = []
        self._stored = asyncio.Event()

    def note(self, entry: Entry, *files: File) -> None:
        """Add an entry, and files that it refers to, to the next batch."""
        if len(self._kept) >= self.most_kept:
            self.lost += 1
        else:
            self._kept.append((entry, files))

    def waiting(self, path: str) -> bytes | None:
        """A file that is yet to be written; None if it is not, or has been."""
        batches = (*self._writing, *self._kept)
        return next((file.data for _, files in batches for file in files if file.path == path), None)

    async def store(self, entries: Sequence[Entry]) -> None:
        """Add entries to the next batch, and wait until it is written.

        Raises:
            UnavailableError: it could not be written, or too many wait to be; they may be written later all the same.
        """
        if not entries:
            return
        if len(self._kept) + len(entries) > self.most_kept:
            raise UnavailableError("the log cannot be written to", self.every_s)
        self._kept.extend((entry, ()) for entry in entries)
        written = self._stored
        await written.wait()
        if self._holds(entries[-1]):
            raise UnavailableError("the log cannot be written to just now", self.every_s)

    def _holds(self, entry: Entry) -> bool:
        return any(kept is entry for kept, _ in self._kept)

    async def run(self) -> None:
        """Write batches until cancelled."""
        while True:
            await self._sleep(self.every_s)
            if self._kept:
                await self.flush()

    async def flush(self) -> None:
        """Write what is kept. A write that has begun goes to its end, also if this is cancelled: nothing is written twice."""
        batch, stored = self._kept, self._stored
        self._kept, self._writing, self._stored = [], batch, asyncio.Event()
        writing = asyncio.ensure_future(asyncio.to_thread(self._write, batch))
        try:
            await asyncio.wait([writing])
        except asyncio.CancelledError:
            await asyncio.wait([writing])
            raise
        finally:
            # Whatever a file system raises: nothing is lost, and the next flush says so again.
            if err := writing.exception():
                self._kept = [*batch, *self._kept]
                logger.warning("%d entries of the log %s cannot be written yet: %s", len(batch), self.log.name, err)
            self._writing = []
            stored.set()

    def _write(self, batch: Sequence[tuple[Entry, tuple[File, ...]]]) -> None:
        for _, files in batch:
            for file in files:
                self.log.lake.write_bytes(file.path, file.data)
        if batch:
            self.log.append([entry for entry, _ in batch], self._now(), self.writer)
