"""A window: a half-open time interval, the unit in which the lake is written and Airflow schedules runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from listing_lens.errors import LensError

_NAME_FORMAT = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True, order=True)
class Window:
    """``[start, end)``, both timezone-aware, in UTC, in whole seconds.

    Raises:
        LensError: a bound has no time zone or has a fraction of a second, or the interval is empty.
    """

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        for bound in ("start", "end"):
            moment: datetime = getattr(self, bound)
            if moment.tzinfo is None:
                raise LensError(
                    f"window {bound} {moment.isoformat()} has no time zone: write it as 2026-01-31T00:00:00Z"
                )
            if moment.microsecond:
                raise LensError(f"window {bound} {moment.isoformat()} has a fraction of a second: give whole seconds")
            object.__setattr__(self, bound, moment.astimezone(UTC))
        if self.start >= self.end:
            raise LensError(
                f"window {self.start.isoformat()} to {self.end.isoformat()} is empty: the end must be later than the start"
            )

    @classmethod
    def parse(cls, start: str | None, end: str | None) -> Window:
        """Parse two ISO 8601 strings. Raises LensError if one is missing, as in a run without a data interval, or invalid."""
        if not start or not end:
            raise LensError(
                "the run has no data interval: replay windows with `airflow backfill create`, or trigger through the API "
                "with data_interval_start and data_interval_end"
            )
        try:
            return cls(datetime.fromisoformat(start), datetime.fromisoformat(end))
        except ValueError as err:
            raise LensError(f"window {start} to {end}: {err}; write times as 2026-01-31T00:00:00Z") from err

    @classmethod
    def from_name(cls, name: str) -> Window:
        """Inverse of ``name``."""
        start, end = (datetime.strptime(part, _NAME_FORMAT).replace(tzinfo=UTC) for part in name.split("_", 1))
        return cls(start, end)

    @property
    def name(self) -> str:
        """The window's name in the lake's folders; names sort by time."""
        return f"{self.start:{_NAME_FORMAT}}_{self.end:{_NAME_FORMAT}}"

    def __str__(self) -> str:
        return f"[{self.start:%Y-%m-%d %H:%M:%SZ}, {self.end:%Y-%m-%d %H:%M:%SZ})"

    def __contains__(self, moment: datetime) -> bool:
        return self.start <= moment < self.end

    def overlaps(self, other: Window) -> bool:
        return self.start < other.end and other.start < self.end

    def split(self, step: timedelta) -> Iterator[Window]:
        """Consecutive windows of the same length; the last may be shorter."""
        start = self.start
        while start < self.end:
            yield Window(start, min(start + step, self.end))
            start += step


def gaps(wanted: Window, present: Iterable[Window]) -> list[Window]:
    """The parts of a window that none of the present windows cover."""
    found, reached = [], wanted.start
    for window in sorted(w for w in present if w.overlaps(wanted)):
        if window.start > reached:
            found.append(Window(reached, window.start))
        reached = max(reached, window.end)
    if reached < wanted.end:
        found.append(Window(reached, wanted.end))
    return found
