"""Outlines as lists of points. Coordinates are x to the right and y down, on a canvas of 100 by 100."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

Point = tuple[float, float]
Outline = list[Point]
_STEPS = 14


def trace(stops: Iterable[Sequence[float]]) -> Outline:
    """Expand curves. A stop is ``(x, y)``, or ``(cx, cy, x, y)`` reached in a curve, or with two control points."""
    points: Outline = []
    for stop in stops:
        *controls, x, y = stop
        if not controls:
            points.append((x, y))
            continue
        knots = [points[-1], *zip(controls[::2], controls[1::2], strict=True), (x, y)]
        points.extend(_bezier(knots, step / _STEPS) for step in range(1, _STEPS + 1))
    return points


def _bezier(knots: list[Point], t: float) -> Point:
    while len(knots) > 1:
        knots = [(x0 + (x1 - x0) * t, y0 + (y1 - y0) * t) for (x0, y0), (x1, y1) in pairwise(knots)]
    return knots[0]


def symmetric(half: Outline, axis: float = 50) -> Outline:
    """A closed outline from its right half, given from top to bottom."""
    return half + mirror(half, axis)[::-1]


def mirror(points: Sequence[Point], axis: float = 50) -> Outline:
    return [(2 * axis - x, y) for x, y in points]


def ellipse(cx: float, cy: float, rx: float, ry: float | None = None, start: float = 0, stop: float = 360) -> Outline:
    """An ellipse, or the part of it between two angles in degrees (0 is to the right, 90 is down)."""
    ry = rx if ry is None else ry
    count = max(8, round(abs(stop - start) / 6))
    angles = [math.radians(start + (stop - start) * step / count) for step in range(count + 1)]
    return [(cx + rx * math.cos(angle), cy + ry * math.sin(angle)) for angle in angles]


def box(left: float, top: float, right: float, bottom: float, radius: float = 0) -> Outline:
    """A rectangle with rounded corners."""
    if radius <= 0:
        return [(left, top), (right, top), (right, bottom), (left, bottom)]
    radius = min(radius, (right - left) / 2, (bottom - top) / 2)
    return [
        *ellipse(right - radius, top + radius, radius, start=-90, stop=0),
        *ellipse(right - radius, bottom - radius, radius, start=0, stop=90),
        *ellipse(left + radius, bottom - radius, radius, start=90, stop=180),
        *ellipse(left + radius, top + radius, radius, start=180, stop=270),
    ]


def star(cx: float, cy: float, radius: float, spikes: int = 5, inner: float = 0.45) -> Outline:
    points = []
    for step in range(spikes * 2):
        angle = math.pi * step / spikes - math.pi / 2
        reach = radius if step % 2 == 0 else radius * inner
        points.append((cx + reach * math.cos(angle), cy + reach * math.sin(angle)))
    return points


def rotate(points: Sequence[Point], degrees: float, about: Point) -> Outline:
    """Turn clockwise, as seen on the screen."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    cx, cy = about
    return [(cx + (x - cx) * cosine - (y - cy) * sine, cy + (x - cx) * sine + (y - cy) * cosine) for x, y in points]


def shift(points: Sequence[Point], dx: float, dy: float) -> Outline:
    return [(x + dx, y + dy) for x, y in points]
