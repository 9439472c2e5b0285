"""Cloth: square RGB images of a pattern in two or three colours."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from listing_lens.demo.drawing.geometry import star
from listing_lens.demo.palette import RGB, darker, lighter, mix

Colours = tuple[RGB, RGB, RGB]
Draw = ImageDraw.ImageDraw


def pattern(name: str, size: int, colours: Colours, scale: float, rng: np.random.Generator) -> Image.Image:
    """A cloth of ``size`` by ``size`` pixels; ``scale`` is the pattern's period as a share of the size."""
    image = Image.new("RGB", (size, size), colours[0])
    _PATTERNS[name](ImageDraw.Draw(image), size, max(8.0, size * scale), colours, rng)
    return image


def _stripes(draw: Draw, size: int, period: float, colours: Colours, _rng: np.random.Generator) -> None:
    for step in range(int(size / period) + 1):
        draw.rectangle((0, step * period, size, (step + 0.5) * period), fill=colours[1])


def _pinstripes(draw: Draw, size: int, period: float, colours: Colours, _rng: np.random.Generator) -> None:
    for step in range(int(size / period * 1.4) + 1):
        x = step * period / 1.4
        draw.rectangle((x, 0, x + period * 0.2, size), fill=colours[1])


def _dots(draw: Draw, size: int, period: float, colours: Colours, _rng: np.random.Generator) -> None:
    for x, y in _lattice(size, period):
        _disc(draw, x, y, period * 0.27, colours[1])


def _checks(draw: Draw, size: int, period: float, colours: Colours, _rng: np.random.Generator) -> None:
    period *= 1.4
    half = mix(colours[0], colours[1], 0.5)
    steps = range(int(size / period) + 1)
    for step in steps:
        draw.rectangle((step * period, 0, (step + 0.5) * period, size), fill=half)
    for row in steps:
        draw.rectangle((0, row * period, size, (row + 0.5) * period), fill=half)
        for column in steps:
            x, y = column * period, row * period
            draw.rectangle((x, y, x + period / 2, y + period / 2), fill=colours[1])
    for step in steps:
        centre = (step + 0.75) * period
        draw.line((centre, 0, centre, size), fill=colours[2], width=max(1, round(period * 0.05)))
        draw.line((0, centre, size, centre), fill=colours[2], width=max(1, round(period * 0.05)))


def _floral(draw: Draw, size: int, period: float, colours: Colours, rng: np.random.Generator) -> None:
    period *= 1.5
    leaf = mix(colours[2], (60, 120, 60), 0.6)
    for x, y in _lattice(size, period):
        turn = rng.random() * math.tau
        radius = period * (0.16 + 0.08 * rng.random())
        for side in (-1, 1):
            _disc(draw, x + side * radius * 1.7, y + radius * 1.3, radius * 0.6, leaf)
        for petal in range(5):
            angle = turn + petal * math.tau / 5
            _disc(draw, x + radius * math.cos(angle), y + radius * math.sin(angle), radius * 0.72, colours[1])
        _disc(draw, x, y, radius * 0.6, colours[2])


def _camouflage(draw: Draw, size: int, period: float, colours: Colours, rng: np.random.Generator) -> None:
    tones = (darker(colours[0], 0.45), lighter(colours[0], 0.4), mix(colours[0], colours[1], 0.5))
    for tone in tones:
        for _ in range(int(6 * size / period)):
            x, y = rng.random(2) * size
            for _ in range(5):
                radius = period * (0.2 + 0.35 * rng.random())
                _disc(draw, x, y, radius, tone)
                x, y = x + (rng.random() - 0.5) * period * 1.5, y + (rng.random() - 0.5) * period * 0.7


def _diamonds(draw: Draw, size: int, period: float, colours: Colours, _rng: np.random.Generator) -> None:
    period *= 1.2
    for row in range(int(size / period) + 2):
        for column in range(int(size / period) + 2):
            x, y, half = column * period, row * period, period / 2
            draw.polygon([(x, y - half), (x + half, y), (x, y + half), (x - half, y)], fill=colours[1])
    width = max(1, round(period * 0.05))
    for step in range(-int(size / period) - 1, int(size / period) * 2 + 2):
        draw.line((step * period, 0, step * period + size, size), fill=colours[2], width=width)
        draw.line((step * period, 0, step * period - size, size), fill=colours[2], width=width)


def _waves(draw: Draw, size: int, period: float, colours: Colours, _rng: np.random.Generator) -> None:
    for row in range(-1, int(size / period) + 2):
        points = [(x, (row + 0.28 * math.sin(x / period * math.pi)) * period) for x in range(0, size + 8, 8)]
        draw.line(points, fill=colours[1 + row % 2], width=round(period * 0.34), joint="curve")


def _hearts(draw: Draw, size: int, period: float, colours: Colours, _rng: np.random.Generator) -> None:
    for number, (x, y) in enumerate(_lattice(size, period * 1.15)):
        radius = period * 0.2
        if number % 3 == 2:
            draw.polygon(star(x, y, radius * 1.5), fill=colours[2])
            continue
        for side in (-1, 1):
            _disc(draw, x + side * radius * 0.75, y - radius * 0.3, radius, colours[1])
        draw.polygon(
            [(x - radius * 1.6, y + radius * 0.2), (x + radius * 1.6, y + radius * 0.2), (x, y + radius * 2)],
            fill=colours[1],
        )


_PATTERNS: dict[str, Callable[[Draw, int, float, Colours, np.random.Generator], None]] = {
    "stripes": _stripes,
    "pinstripes": _pinstripes,
    "dots": _dots,
    "checks": _checks,
    "floral": _floral,
    "camouflage": _camouflage,
    "diamonds": _diamonds,
    "waves": _waves,
    "hearts": _hearts,
}


def _lattice(size: int, period: float) -> list[tuple[float, float]]:
    """Staggered points that cover the cloth."""
    steps = range(int(size / period) + 2)
    return [((column + 0.5 * (row % 2)) * period, row * period) for row in steps for column in steps]


def _disc(draw: Draw, x: float, y: float, radius: float, fill: RGB) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
