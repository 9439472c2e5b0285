"""Searches on the made catalog: an earlier engine's results, and people who tap on some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np

from listing_lens.demo.chance import generator, pick, weighted
from listing_lens.demo.palette import COLOURS, distance
from listing_lens.demo.plan import DemoCatalog, Photo, Version, image_name
from listing_lens.demo.product import Product
from listing_lens.demo.words import ENGLISH, JAPANESE
from listing_lens.lake.records import SEARCHABLE, Query, QueryKind, Session
from listing_lens.lake.window import Window

SHOWN = 20
# How often people search with what.
KINDS_OF_QUERIES = {
    QueryKind.PHOTO: 0.7,
    QueryKind.PHOTOS: 0.1,
    QueryKind.TEXT: 0.1,
    QueryKind.PHOTO_AND_TEXT: 0.1,
}
_PHOTOS_OF_ONE = 3
_SHOPPERS = 60
# The chance of a tap on an item that is looked at: the same product, a similar one, another of its kind, the rest.
_SAME, _ALIKE, _KINDRED, _OTHER = 0.8, 0.35, 0.06, 0.01
# The first position is always looked at; the chance falls as rank^-0.6.
_ATTENTION = 0.6


@dataclass(frozen=True, slots=True)
class DemoSession:
    """A session, the product that is looked for, and the query's photos."""

    session: Session
    wanted: Product
    photos: tuple[Photo, ...]


def plan_sessions(catalog: DemoCatalog) -> list[DemoSession]:
    """All sessions of a catalog, by time; later days have more.

    A session shows only items that could be bought at its moment, with a photo that can be opened. One for which
    nothing was on sale yet is not made, so a tiny catalog may have fewer than were asked for.
    """
    spec = catalog.spec
    sessions = [_plan_session(catalog, number) for number in range(spec.sessions)]
    return sorted((found for found in sessions if found), key=lambda found: found.session.searched_at)


def _plan_session(catalog: DemoCatalog, number: int) -> DemoSession | None:
    spec = catalog.spec
    session_id = f"s{number:06d}"
    rng = generator(spec.seed, "session", session_id)
    searched_at = _moment(spec.windows, rng)
    available = available_at(catalog.versions, searched_at)
    if not available:
        return None
    seen = pick(rng, available).product
    asking = generator(spec.seed, "query", session_id)
    kind = weighted(asking, list(KINDS_OF_QUERIES), list(KINDS_OF_QUERIES.values()))
    wanted = _in_another_colour(seen, asking) if kind is QueryKind.PHOTO_AND_TEXT else seen
    ranked = _earlier_engine(wanted, available, rng)[:SHOWN]
    tapped = click(np.array([attraction(wanted, version.product) for version in ranked]), rng)
    shopper = f"shopper-{rng.integers(_SHOPPERS)}"
    count = {QueryKind.TEXT: 0, QueryKind.PHOTOS: _PHOTOS_OF_ONE}.get(kind, 1)
    photos = tuple(Photo(image_name(session_id, n, "jpeg"), seen, shopper, "jpeg") for n in range(1, count + 1))
    is_written = kind in (QueryKind.TEXT, QueryKind.PHOTO_AND_TEXT)
    query = Query(tuple(photo.name for photo in photos), _words(wanted, asking) if is_written else None)
    shown = tuple(version.listing.item_id for version in ranked)
    return DemoSession(Session(session_id, searched_at, query, shown, tuple(map(bool, tapped))), wanted, photos)


def _in_another_colour(seen: Product, rng: np.random.Generator) -> Product:
    """What somebody wants who has a photo of one product, and writes the colour that it should have."""
    colour = pick(rng, [name for name in COLOURS if name != seen.colour])
    return replace(seen, product_id=f"{seen.product_id} in {colour}", colour=colour)


def _words(wanted: Product, rng: np.random.Generator) -> str:
    """What somebody types who looks for a product: its colour and what it is."""
    colour = COLOURS[wanted.colour]
    if rng.random() < 0.5:
        return f"{colour.english} {pick(rng, ENGLISH[wanted.kind])}"
    return f"{colour.japanese} {pick(rng, JAPANESE[wanted.kind])}"


def _moment(windows: Sequence[Window], rng: np.random.Generator) -> datetime:
    """Some time from a day's noon on, when there is something to find; each day has more searches than the last."""
    weights = np.arange(1, len(windows) + 1, dtype=float) ** 1.5
    window = windows[int(rng.choice(len(windows), p=weights / weights.sum()))]
    return window.start + timedelta(seconds=int(rng.integers(12 * 3600, 24 * 3600)))


def available_at(versions: Sequence[Version], moment: datetime) -> list[Version]:
    """The newest version of each listing at a moment, where it can be bought and its photo can be opened."""
    newest = {version.listing.item_id: version for version in versions if version.listing.updated_at <= moment}
    return [
        version
        for version in newest.values()
        if version.listing.status in SEARCHABLE and version.photo.breakage is None
    ]


def _earlier_engine(wanted: Product, available: list[Version], rng: np.random.Generator) -> list[Version]:
    """All available items, best first, as an engine that knows something of kind, colour and pattern would rank them."""
    scores = np.array([_likeness(wanted, version.product) for version in available])
    scores += rng.normal(0, 0.45, len(scores))
    return [available[place] for place in np.argsort(-scores, kind="stable")]


def _likeness(wanted: Product, other: Product) -> float:
    colours = 1 - distance(COLOURS[wanted.colour].rgb, COLOURS[other.colour].rgb) / 442
    return (
        1.1 * (wanted.kind == other.kind)
        + 0.9 * colours
        + 0.3 * (wanted.pattern == other.pattern)
        + 0.45 * (wanted.product_id == other.product_id)
    )


def attraction(wanted: Product, other: Product) -> float:
    """The chance that a shopper who looks at an item taps on it."""
    if wanted.product_id == other.product_id:
        return _SAME
    if wanted.kind != other.kind:
        return _OTHER
    return _ALIKE if wanted.colour == other.colour else _KINDRED


def click(attractions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which shown items are tapped: each is looked at with a chance that falls with its rank, then maybe tapped.

    Args:
        attractions: the chance of a tap on each item once it is looked at, by rank, shape (n,).

    Returns:
        Booleans, shape (n,).
    """
    looked_at = np.arange(1, len(attractions) + 1) ** -_ATTENTION
    tapped: np.ndarray = rng.random(len(attractions)) < looked_at * attractions
    return tapped
