"""A product: everything that decides how it looks. Several sellers may list the same one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from listing_lens.demo.chance import generator, pick
from listing_lens.demo.palette import COLOURS, RGB, distance
from listing_lens.demo.taxonomy import KINDS, Kind

PATTERNS = ("stripes", "pinstripes", "dots", "checks", "floral", "camouflage", "diamonds", "waves", "hearts")
EMBLEMS = ("star", "bolt", "ring", "wave", "leaf", "mountain", "cat", "moon", "cross", "letter", "number", "face")
# Invented names; each is always written the same way, in either language.
BRANDS = (
    "KOMOREBI", "Norvik", "Tsubame Works", "haru & co", "LUMEN NORD", "Sazanami", "Pikkolo", "OAKRIDGE 77", "みどり工房",
    "Velora", "ASAGIRI", "Bram & Tull", "kumo", "Zephyro", "HOSHIZORA", "Marisol", "トキワ堂", "Quillon", "SUNDRIFT", "Yamaneko",
)  # fmt: skip
SHAPE_PARAMETERS = 8
# A kind comes in a few colours, so that many products have both in common, and their titles too: only their looks differ.
COLOURS_OF_KIND = 6


@dataclass(frozen=True, slots=True)
class Product:
    """The parameters of a drawing. ``shape`` holds numbers from 0 to 1, whose meaning each kind's drawing decides."""

    product_id: str
    kind: str
    colour: str
    second: str
    accent: str
    pattern: str | None
    emblem: str | None
    # A letter or a digit, for the emblems that need one.
    mark: str
    brand: str
    shape: tuple[float, ...]
    # Multiplies the brightness of its colours: not every red is the same.
    tone: float

    @property
    def rgb(self) -> RGB:
        """The main colour as this product has it."""
        red, green, blue = (min(255, round(value * self.tone)) for value in COLOURS[self.colour].rgb)
        return red, green, blue


def make_product(seed: int, number: int) -> Product:
    """Product number ``number`` of the catalog of a seed; kinds take turns, so that none is missing."""
    product_id = f"p{number:06d}"
    rng = generator(seed, "product", product_id)
    kinds = list(KINDS.values())
    kind = kinds[number % len(kinds)]
    colour, second, accent = _colours(rng, _palette(seed, kind))
    return Product(
        product_id=product_id,
        kind=kind.name,
        colour=colour,
        second=second,
        accent=accent,
        pattern=_pattern(rng, kind),
        emblem=pick(rng, EMBLEMS) if rng.random() < kind.emblem else None,
        mark=pick(rng, "ABEGHKMNRSTVXYZ2345679"),
        brand=pick(rng, BRANDS),
        shape=tuple(round(float(value), 4) for value in rng.random(SHAPE_PARAMETERS)),
        tone=round(float(rng.uniform(0.86, 1.1)), 3),
    )


def _pattern(rng: np.random.Generator, kind: Kind) -> str | None:
    return pick(rng, PATTERNS) if rng.random() < kind.patterned else None


def _palette(seed: int, kind: Kind) -> list[str]:
    """The main colours that a kind comes in."""
    rng = generator(seed, "palette", kind.name)
    return [str(name) for name in rng.choice(list(COLOURS), COLOURS_OF_KIND, replace=False)]


def _colours(rng: np.random.Generator, palette: Sequence[str]) -> tuple[str, str, str]:
    """Three colours that can be told apart, the first one from a palette."""
    names = list(COLOURS)
    colour = pick(rng, palette)
    second = pick(rng, [name for name in names if _apart(name, colour)])
    accent = pick(rng, [name for name in names if _apart(name, colour) and _apart(name, second)])
    return colour, second, accent


def _apart(first: str, second: str) -> bool:
    return distance(COLOURS[first].rgb, COLOURS[second].rgb) > 95
