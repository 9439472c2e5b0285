"""Searches on the made catalog: an earlier engine's results, and people who tap on some of them.

The engine knows kind, colour and pattern, which titles say, and something of the product; so what it shows is mostly of the
wanted kind, in the wanted colour or a near one. People go by what the photo shows: also the shape, the emblem and the other
colours, which no title says. They look at an item the less often the further down it is, as `examination` says. Some sessions
were shown in random order, by which that bias can be told from the taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache

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
    QueryKind.PHOTO: 0.8,
    QueryKind.PHOTOS: 0.05,
    QueryKind.TEXT: 0.1,
    QueryKind.PHOTO_AND_TEXT: 0.05,
}
_PHOTOS_OF_ONE = 3
_SHOPPERS = 60
# The chance of a tap on an item that is looked at: the same product, one of its kind that looks the same, one of its kind that
# has nothing else in common, the rest.
_SAME, _ALIKE, _KINDRED, _OTHER = 0.85, 0.6, 0.02, 0.005
# What counts how much for looking the same; pattern and colour are said in titles, the others are not.
_LOOKS = {"colour": 0.2, "second": 0.1, "pattern": 0.2, "emblem": 0.25, "shape": 0.25}
# Attraction falls this fast with looks: only what is nearly the same will do.
_SHARPNESS = 4
# Of sessions whose order is random.
SHUFFLED_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class DemoSession:
    """A session, the product that is looked for, the query's photos, and whether what it showed was in random order."""

    session: Session
    wanted: Product
    photos: tuple[Photo, ...]
    shuffled: bool


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
    shuffled = bool(rng.random() < SHUFFLED_SHARE)
    if shuffled:
        ranked = [ranked[place] for place in rng.permutation(len(ranked))]
    tapped = click(np.array([attraction(wanted, version.product) for version in ranked]), rng)
    shopper = f"shopper-{rng.integers(_SHOPPERS)}"
    count = {QueryKind.TEXT: 0, QueryKind.PHOTOS: _PHOTOS_OF_ONE}.get(kind, 1)
    photos = tuple(Photo(image_name(session_id, n, "jpeg"), seen, shopper, "jpeg") for n in range(1, count + 1))
    is_written = kind in (QueryKind.TEXT, QueryKind.PHOTO_AND_TEXT)
    query = Query(tuple(photo.name for photo in photos), _words(wanted, asking) if is_written else None)
    shown = tuple(version.listing.item_id for version in ranked)
    session = Session(session_id, searched_at, query, shown, tuple(map(bool, tapped)))
    return DemoSession(session, wanted, photos, shuffled)


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
    weights = np.arange(1, len(windows) + 1, dtype=float) ** 0.5
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
    products = {version.product.product_id: version.product for version in available}
    likeness = {product_id: _likeness(wanted, product) for product_id, product in products.items()}
    scores = np.array([likeness[version.product.product_id] for version in available])
    scores += rng.normal(0, 0.45, len(scores))
    return [available[place] for place in np.argsort(-scores, kind="stable")]


def _likeness(wanted: Product, other: Product) -> float:
    return (
        1.4 * (wanted.kind == other.kind)
        + 0.9 * _alike_colours(wanted.colour, other.colour)
        + 0.3 * (wanted.pattern == other.pattern)
        + 0.45 * (wanted.product_id == other.product_id)
    )


@cache
def _alike_colours(first: str, second: str) -> float:
    """From 0 to 1, for the same colour."""
    return 1 - distance(COLOURS[first].rgb, COLOURS[second].rgb) / 442


def attraction(wanted: Product, other: Product) -> float:
    """The chance that a shopper who looks at an item taps on it."""
    if wanted.product_id == other.product_id:
        return _SAME
    if wanted.kind != other.kind:
        return _OTHER
    return float(_KINDRED + (_ALIKE - _KINDRED) * looks(wanted, other) ** _SHARPNESS)


def looks(wanted: Product, other: Product) -> float:
    """How much two products of a kind look the same, from 0 to 1."""
    shapes = np.abs(np.subtract(wanted.shape, other.shape)).mean()
    alike = {
        "colour": _alike_colours(wanted.colour, other.colour),
        "second": _alike_colours(wanted.second, other.second),
        "pattern": float(wanted.pattern == other.pattern),
        "emblem": float(wanted.emblem == other.emblem and (wanted.emblem is None or wanted.mark == other.mark)),
        # Random numbers from 0 to 1 differ by a third on average.
        "shape": max(0.0, 1 - 3 * float(shapes)),
    }
    return sum(_LOOKS[what] * value for what, value in alike.items())


def examination(ranks: np.ndarray) -> np.ndarray:
    """The chance that an item is looked at, by its rank from 1 on: 1 / log2(rank + 1), as nDCG discounts."""
    seen: np.ndarray = 1 / np.log2(ranks + 1)
    return seen


def click(attractions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which shown items are tapped: each is looked at with a chance that falls with its rank, then maybe tapped.

    Args:
        attractions: the chance of a tap on each item once it is looked at, by rank, shape (n,).

    Returns:
        Booleans, shape (n,).
    """
    looked_at = examination(np.arange(1, len(attractions) + 1))
    tapped: np.ndarray = rng.random(len(attractions)) < looked_at * attractions
    return tapped
