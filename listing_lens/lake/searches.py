"""The search service's log: what is in it, the sessions that it becomes, and how it is forgotten.

    <root>/logs/searches/day=<date>/<time>-<writer>.jsonl       searches and events
                                   /photos/<search id>.jpg      the photos of that day's searches; <search id>-1.jpg if there
                                                                are more of one

An entry is a search, of kind "search", or an event: what a buyer did with a result, under the search's id. The service stamps
both with its own time. A search's id begins with its time, as 12 hexadecimal digits of milliseconds since 1970.

The sessions of a window refer to the photos where they are, in the log, so that a photo is kept once, and no longer than the
log: both are forgotten together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from listing_lens.errors import LensError
from listing_lens.lake.log import Entry, Log
from listing_lens.lake.records import Query, Session
from listing_lens.lake.window import Window
from listing_lens.lake.windows import SESSIONS, Lake, Manifest

SEARCHES = "searches"
# How a manifest says that its window was landed from the log.
FROM_LOG = {"log": SEARCHES}
# How long after a window's end the taps on its last results are waited for, and entries that the lake did not take at once.
GRACE = timedelta(hours=1)

# A search by photo or words, rather than by an item.
_BY_QUERY = frozenset({"photo", "text"})
_CHOICES = frozenset({"tap", "purchase"})

# Why a search is no session. Its events are counted by the same reason.
_NO_SESSION = ("elsewhere", "similar", "nothing_shown", "without_query")
# Of a window: every search is a row or one of its kinds, and every event one of its kinds.
SEARCH_KINDS = tuple(f"searches_{kind}" for kind in (*_NO_SESSION, "repeated"))
EVENT_KINDS = tuple(f"events_{kind}" for kind in ("chosen", "seen", "not_shown", "unknown", *_NO_SESSION, "repeated"))


@dataclass(frozen=True, slots=True)
class Search:
    """A search that was logged."""

    search_id: str
    at: datetime
    surface: str
    shown: tuple[str, ...]
    photos: int
    text: str = ""
    text_weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Event:
    """What a buyer did with an item that a search had shown, or so somebody told."""

    search_id: str
    kind: str
    item_id: str


def search_log(lake: Lake) -> Log:
    return Log(lake, SEARCHES)


def photo_name(search_id: str, number: int = 0) -> str:
    """Where a photo of a search is kept: with the log of its day; relative to the log's folder.

    Args:
        search_id: the search.
        number: counts its photos from 0.

    Raises:
        ValueError, OverflowError: an id whose time no calendar has.
    """
    day = datetime.fromtimestamp(_milliseconds(search_id) / 1000, UTC).date()
    return f"day={day}/photos/{search_id}{f'-{number}' if number else ''}.jpg"


def read_entry(entry: Entry) -> Search | Event:
    """An entry of the log. Raises LensError when it is neither a search nor an event."""
    try:
        if entry["kind"] != "search":
            return Event(entry["search_id"], entry["kind"], entry["item_id"])
        at = datetime.fromisoformat(entry["at"])
        return Search(
            entry["search_id"],
            at,
            entry["surface"],
            tuple(entry["shown"]),
            entry["photos"],
            entry.get("text", ""),
            entry.get("text_weight", 1.0),
        )
    except KeyError as err:
        raise LensError(
            f"an entry of the log of searches, of kind {entry.get('kind')!r} and search {entry.get('search_id')!r}, has no "
            f"{err}: remove its line, or read it with the version that wrote it"
        ) from err


# ---- sessions --------------------------------------------------------------------------------------------------------


def session_of(
    search_id: str, logged: Iterable[Search | Event], window: Window
) -> tuple[Session | None, Mapping[str, int]]:
    """The session of one search, from all that was logged under its id, in any order and any number of times.

    A search by photo or words is a session of the window that holds its time, tapped or not. What was tapped, or bought, was
    chosen among what was shown: a purchase without a tap is a tap of which the message was lost. An item's page may also be
    viewed for other reasons, from a shared link or a tab that is opened again, and being on the screen is no choice:
    impressions and views count for nothing. An item that was shown more than once has its first place alone.

    Args:
        search_id: the search.
        logged: its searches and events. It may be empty of either.
        window: the window that is landed.

    Returns:
        The session, if there is one, whose photos' addresses are relative to the log's folder; and counts: `searches` =
        `rows` + those of `SEARCH_KINDS`, `events` = those of `EVENT_KINDS`.
    """
    search: Search | None = None
    counts: Counter[str] = Counter()
    events: set[tuple[str, str]] = set()
    for one in logged:
        if isinstance(one, Search):
            counts["searches"] += 1
            search = one if search is None else min(search, one, key=_as_logged)
        else:
            counts["events"] += 1
            events.add((one.kind, one.item_id))
    counts["searches_repeated"] = counts["searches"] - (search is not None)
    counts["events_repeated"] = counts["events"] - len(events)
    if search is None:
        counts["events_unknown" if _is_of(search_id, window) else "events_elsewhere"] += len(events)
        return None, counts
    if why := _why_no_session(search, window):
        counts[f"searches_{why}"] += 1
        counts[f"events_{why}"] += len(events)
        return None, counts
    shown = tuple(dict.fromkeys(search.shown))
    for kind, item_id in events:
        known = item_id in shown
        counts["events_not_shown" if not known else "events_chosen" if kind in _CHOICES else "events_seen"] += 1
    chosen = {item_id for kind, item_id in events if kind in _CHOICES}
    counts["rows"] += 1
    tapped = tuple(item_id in chosen for item_id in shown)
    photos = tuple(photo_name(search_id, number) for number in range(search.photos))
    query = Query(photos, search.text or None, search.text_weight if search.text and photos else None)
    return Session(search_id, search.at, query, shown, tapped), counts


def _as_logged(search: Search) -> tuple[object, ...]:
    return search.at, search.surface, search.shown, search.photos, search.text, search.text_weight


def _why_no_session(search: Search, window: Window) -> str | None:
    if search.at not in window:
        return "elsewhere"
    if search.surface not in _BY_QUERY:
        return "similar"
    if not search.shown:
        return "nothing_shown"
    return None if search.photos or search.text else "without_query"


def _is_of(search_id: str, window: Window) -> bool:
    """Whether a search's id claims a time within a window."""
    start, end = (int(1000 * bound.timestamp()) for bound in (window.start, window.end))
    return start <= _milliseconds(search_id) < end


def _milliseconds(search_id: str) -> int:
    return int(search_id[:12], 16)


# ---- windows ---------------------------------------------------------------------------------------------------------


def is_from_log(manifest: Manifest) -> bool:
    """Whether a window of sessions was landed from the log."""
    return FROM_LOG.items() <= manifest.parameters.items()


def why_not_to_land(lake: Lake, window: Window) -> str | None:
    """Why a window's sessions are not to be landed from the log, as a sentence; None if they are.

    Sessions that came from elsewhere are never replaced. A window in which nothing at all was logged is no empty window:
    the service may not be in use, or write to another lake.
    """
    landed = lake.manifests(SESSIONS, lake.windows(SESSIONS, window))
    others = [other for other, manifest in landed.items() if not is_from_log(manifest)]
    if others:
        return f"sessions of {others[0]} did not come from the log of searches: they are left as they are"
    last = (window.end - timedelta(microseconds=1)).date()
    if not any(window.start.date() <= day <= last for day in search_log(lake).days()):
        return f"nothing is in the log of searches of {window}: no sessions are landed from it"
    return None


# ---- forgetting ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forgotten:
    """Days of the log, and windows of sessions, that are gone."""

    days: int
    windows: int


def kept_since(days: int, now: datetime) -> date:
    """The first day whose searches are kept, if searches are kept for so many days. Of 0 days, today's are not kept either."""
    today = now.astimezone(UTC).date()
    return today - timedelta(days=days) if days else today + timedelta(days=1)


def forget_searches(lake: Lake, before: date) -> Forgotten:
    """Remove the log's days before a date, with their photos, and every window of sessions that was landed from one of them.

    Sessions that came from elsewhere stay. May be called again if it was interrupted.
    """
    landed = lake.manifests(SESSIONS, lake.windows(SESSIONS))
    old = [window for window, manifest in landed.items() if is_from_log(manifest) and window.start.date() < before]
    # First, so that no session refers to a photo that is gone.
    for window in old:
        lake.remove_window(SESSIONS, window)
    return Forgotten(search_log(lake).forget(before), len(old))
