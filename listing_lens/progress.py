"""A job's progress: log lines in one format, for people to read in a task's log and for the CLI to turn into a bar."""

from __future__ import annotations

import logging
import re
import threading
from collections import Counter
from dataclasses import dataclass

logger = logging.getLogger(__name__)

_LINE = re.compile(r"(?<!\S)progress: (?P<stage>[\w :-]+?): (?P<done>\d[\d,]*)(?: of (?P<total>\d[\d,]*))?$")

_lock = threading.Lock()
_done: Counter[str] = Counter()


@dataclass(frozen=True)
class Progress:
    """`done` elements of a stage, of `total` if known. Both grow; `done` may end below `total`, which is an estimate."""

    stage: str
    done: int
    total: int | None

    def __str__(self) -> str:
        share = f" of {self.total:,}" if self.total is not None else ""
        return f"progress: {self.stage}: {self.done:,}{share}"

    @classmethod
    def parse(cls, line: str) -> Progress | None:
        """Find the report in a log line; None in any other line."""
        found = _LINE.search(line.rstrip())
        if not found:
            return None
        total = found["total"]
        return cls(found["stage"], _number(found["done"]), _number(total) if total else None)


def advance(stage: str, count: int, total: int | None = None) -> None:
    """Report that `count` more elements of a stage are done in this process, of `total` in the whole job if known."""
    with _lock:
        _done[stage] += count
        logger.info("%s", Progress(stage, _done[stage], total))


def _number(text: str) -> int:
    return int(text.replace(",", ""))
