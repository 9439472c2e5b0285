"""Land the sessions of one window from the search service's log: searches by photo or words, with what was tapped
of what was shown.

What buyers did with the last results of a window is logged after its end, so the log is read up to an hour beyond it, and the
window is landed no sooner. All that was logged of a search is brought together by its id; entries may come twice, and in any
order. The sessions refer to the photos in the log, where they stay. What is not used is counted by reason.

Sessions that came from elsewhere (`lens catalog make`, your own feed) are never replaced, and where nothing was logged,
nothing is landed. A repeated run replaces what it landed before.

    python -m beam_jobs.land_sessions --window_start 2026-01-31T00:00:00Z --window_end 2026-02-01T00:00:00Z
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from beam_jobs.launcher import add_window, launch, parser, pipeline_options
from beam_jobs.transforms.windows import CommitWindow, WindowTarget, WriteRecords
from listing_lens.errors import LensError
from listing_lens.lake.log import Log
from listing_lens.lake.records import SESSION_SCHEMA, Session
from listing_lens.lake.searches import (
    EVENT_KINDS,
    FROM_LOG,
    GRACE,
    SEARCH_KINDS,
    Event,
    Search,
    kept_since,
    read_entry,
    search_log,
    session_of,
    why_not_to_land,
)
from listing_lens.lake.window import Window
from listing_lens.lake.windows import ROWS, SESSIONS, Lake, Manifest
from listing_lens.settings import load_settings

logger = logging.getLogger(__name__)

# The log's files are listed in parts of this length: a day's are in one folder.
_LISTED_TOGETHER = timedelta(days=1)


@dataclass(frozen=True)
class Config:
    """One landing: which window, from which log."""

    log: Log
    window: Window

    @property
    def spans(self) -> list[Window]:
        """When the files were written that may tell of the window."""
        return list(Window(self.window.start, self.window.end + GRACE).split(_LISTED_TOGETHER))

    def new_target(self) -> WindowTarget:
        """The window to write, as a new attempt."""
        return WindowTarget(self.log.lake, SESSIONS, self.window, image_root=self.log.folder)


def run(spans: beam.PCollection[Window], config: Config) -> beam.PCollection[Manifest]:
    """When files of the log were written → the manifest of the window."""
    target = config.new_target()
    entries = (
        spans
        | "Spread spans" >> beam.Reshuffle()
        | "Find files" >> beam.FlatMap(lambda span: config.log.files(span.start, span.end))
        | "Spread files" >> beam.Reshuffle()
        | "Read" >> beam.FlatMap(lambda path: map(read_entry, config.log.read(path)))
    )
    joined = (
        entries
        | "Key by search" >> beam.WithKeys(lambda entry: entry.search_id)
        | "Bring together" >> beam.GroupByKey()
        | "Join" >> beam.ParDo(JoinSearch(config.window)).with_outputs("counts", main="sessions")
    )
    found = {"files": joined.sessions | WriteRecords(target, ROWS, SESSION_SCHEMA), "counts": joined.counts}
    return found | "Commit" >> CommitWindow(target, partial(_seal, config=config))


class JoinSearch(beam.DoFn):
    """(search id, all that was logged of it) → its session, if it is one of the window; `counts`: (name, number)."""

    def __init__(self, window: Window) -> None:
        self._window = window

    def process(self, grouped: tuple[str, Iterable[Search | Event]]) -> Iterator[Session | TaggedOutput]:
        session, counts = session_of(*grouped, self._window)
        if session is not None:
            yield session
        yield from (TaggedOutput("counts", counted) for counted in counts.items())


def _seal(found: dict[str, int], *, config: Config) -> tuple[dict[str, int], dict[str, Any]]:
    """Reject sessions of which something went missing, or that came from elsewhere meanwhile."""
    counts = dict.fromkeys((ROWS, "searches", *SEARCH_KINDS, "events", *EVENT_KINDS), 0) | found
    for read, kinds in (("searches", (ROWS, *SEARCH_KINDS)), ("events", EVENT_KINDS)):
        came_out = sum(counts[kind] for kind in kinds)
        if counts[read] != came_out:
            raise LensError(f"window {config.window}: {counts[read]} {read} went in, {came_out} came out: {counts}")
    if why := why_not_to_land(config.log.lake, config.window):
        raise LensError(f"meanwhile, {why}")
    logger.info("sessions of %s have landed: %s", config.window, counts)
    return counts, dict(FROM_LOG)


def configure(window: Window, now: datetime) -> Config | None:
    """Find out whether a window can be landed.

    Args:
        window: the window whose sessions are landed.
        now: the time.

    Returns:
        None if nothing is to be done; the log says why.

    Raises:
        LensError: buyers may still tap what the window's searches showed, its searches are forgotten, sessions of an
            overlapping window were landed, or the lake cannot be reached.
    """
    settings = load_settings()
    lake = Lake(settings.lake)
    lake.check()
    if why := why_not_to_land(lake, window):
        logger.info("%s", why)
        return None
    if now < window.end + GRACE:
        raise LensError(
            f"what was shown in {window} may still be tapped: land its sessions after "
            f"{(window.end + GRACE).isoformat(timespec='minutes')}"
        )
    # Of a day that is forgotten, a part may be there: what was written after midnight.
    if window.start.date() < kept_since(settings.search_log_days, now):
        raise LensError(
            f"searches of {window} are forgotten after LENS_SEARCH_LOG_DAYS={settings.search_log_days} days: "
            "choose a later window"
        )
    if others := [other for other in lake.windows(SESSIONS, window) if other != window]:
        raise LensError(
            f"sessions of {others[0]} were landed from the log of searches, and would be counted twice with those of "
            f"{window}: land that window instead"
        )
    return Config(search_log(lake), window)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the pipeline to its end."""
    arguments = parser(__doc__)
    add_window(arguments, required=True)
    known, beam_arguments = arguments.parse_known_args(argv)
    options = pipeline_options(load_settings(), beam_arguments)
    config = configure(Window.parse(known.window_start, known.window_end), datetime.now(UTC))
    if config is None:
        return
    with beam.Pipeline(options=options) as pipeline:
        run(pipeline | "Spans" >> beam.Create(config.spans), config)


if __name__ == "__main__":
    launch(main)
