"""The ledger of an encoder: which windows are embedded, from which input, and which attempt may complete them.

A run starts by writing its attempt into the line of each of its windows, and ends by completing the lines that still carry
it: a window that a later run has taken over is not completed. A line identifies the exact inputs that were read: when a
window of listings is landed again, its identity changes, and it counts as not embedded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import pyarrow as pa

from listing_lens.errors import LensError
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.records import TIMESTAMP
from listing_lens.lake.tables import Table
from listing_lens.lake.window import Window, gaps

_SCHEMA = pa.schema(
    [
        pa.field("window", pa.string(), nullable=False),
        # The latest attempt to embed the window, and when it began.
        pa.field("attempt", pa.string(), nullable=False),
        pa.field("attempted_at", TIMESTAMP, nullable=False),
        # The remaining columns describe the last attempt that finished; null until one has.
        pa.field("completed_by", pa.string()),
        pa.field("completed_at", TIMESTAMP),
        # The inputs it read: "<landed window>@<identity>".
        pa.field("inputs", pa.list_(pa.string())),
        # JSON: listings by outcome, and the run's parameters.
        pa.field("counts", pa.string()),
        pa.field("parameters", pa.string()),
    ]
)


@dataclass(frozen=True)
class Line:
    """A window in the ledger."""

    window: Window
    attempt: str
    attempted_at: datetime
    completed_by: str | None = None
    completed_at: datetime | None = None
    inputs: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """`embedded`, or `running` if the latest attempt has not finished, even if its run has died."""
        return "embedded" if self.completed_by == self.attempt else "running"


@dataclass(frozen=True)
class Completed:
    """What a run records for a window when it finishes."""

    inputs: tuple[str, ...]
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Ledger:
    """The ledger of an encoder's windows."""

    embeddings: Embeddings

    @property
    def table(self) -> Table:
        return self.embeddings.windows

    def lines(self) -> dict[Window, Line]:
        """Every line, by window, in chronological order."""
        lines = map(_line_of, self.table.rows())
        return {line.window: line for line in sorted(lines, key=lambda line: line.window)}

    def begin(self, windows: Iterable[Window], attempt: str, now: datetime) -> None:
        """Make an attempt the one that may complete these windows; earlier attempts are superseded."""
        lines = self.lines()
        begun = (lines.get(window, Line(window, attempt, now)) for window in windows)
        self._write([_row_of(replace(line, attempt=attempt, attempted_at=now)) for line in begun])

    def current(self, windows: Iterable[Window], attempt: str) -> list[Window]:
        """The windows, of those given, that an attempt may still complete.

        Raises:
            LensError: it has been superseded in all of them.
        """
        return [line.window for line in self._current(windows, attempt)]

    def _current(self, windows: Iterable[Window], attempt: str) -> list[Line]:
        lines = self.lines()
        wanted = list(windows)
        mine = [lines[window] for window in wanted if window in lines and lines[window].attempt == attempt]
        if wanted and not mine:
            other = lines[wanted[0]].attempt if wanted[0] in lines else "none"
            raise LensError(
                f"window {wanted[0]} of {self.embeddings.encoder_id} was taken over by attempt {other}, which began later: "
                "leave it to that one"
            )
        return mine

    def complete(
        self, completed: Mapping[Window, Completed], attempt: str, parameters: Mapping[str, Any], now: datetime
    ) -> list[Window]:
        """Record windows as embedded, except those in which the attempt has been superseded. Returns the recorded ones.

        Raises:
            LensError: it has been superseded in all of them.
        """
        done = [
            replace(
                line,
                completed_by=attempt,
                completed_at=now,
                inputs=completed[line.window].inputs,
                counts=completed[line.window].counts,
                parameters=parameters,
            )
            for line in self._current(completed, attempt)
        ]
        self._write(list(map(_row_of, done)), newer=f"target.attempt = '{attempt}'")
        return [line.window for line in done]

    def _write(self, rows: list[dict[str, object]], newer: str | None = None) -> None:
        if rows:
            self.table.merge(_SCHEMA, [pa.RecordBatch.from_pylist(rows, schema=_SCHEMA)], newer=newer)


def not_embedded(landed: Mapping[Window, str], lines: Iterable[Line], within: Window | None = None) -> list[Window]:
    """The landed windows whose current input is not, or not completely, embedded, in chronological order.

    Args:
        landed: the identity of each landed window.
        lines: the ledger's lines. Their windows need not be those in which listings land.
        within: if given, only the parts of the windows that lie in it are considered.
    """
    by_input: dict[str, list[Window]] = {}
    for line in lines:
        for name in line.inputs:
            by_input.setdefault(name, []).append(line.window)
    return [
        window
        for window, identity in sorted(landed.items())
        if gaps(_part(window, within), by_input.get(input_of(window, identity), []))
    ]


def _part(window: Window, within: Window | None) -> Window:
    return window if within is None else Window(max(window.start, within.start), min(window.end, within.end))


def input_of(window: Window, identity: str) -> str:
    """The ledger's name for a landed window as it was read."""
    return f"{window.name}@{identity}"


def _row_of(line: Line) -> dict[str, object]:
    done = line.completed_by is not None
    return {
        "window": line.window.name,
        "attempt": line.attempt,
        "attempted_at": line.attempted_at,
        "completed_by": line.completed_by,
        "completed_at": line.completed_at,
        "inputs": list(line.inputs) if done else None,
        "counts": json.dumps(dict(line.counts), sort_keys=True) if done else None,
        "parameters": json.dumps(dict(line.parameters), sort_keys=True) if done else None,
    }


def _line_of(row: dict[str, Any]) -> Line:
    return Line(
        Window.from_name(row["window"]),
        row["attempt"],
        row["attempted_at"],
        row["completed_by"],
        row["completed_at"],
        tuple(row["inputs"] or ()),
        json.loads(row["counts"] or "{}"),
        json.loads(row["parameters"] or "{}"),
    )
