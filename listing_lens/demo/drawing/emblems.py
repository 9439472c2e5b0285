"""The logos and characters that products carry."""

from __future__ import annotations

import math

from listing_lens.demo.drawing.geometry import Outline, box, ellipse, rotate, star, trace
from listing_lens.demo.drawing.sketch import Sketch
from listing_lens.demo.palette import RGB


def emblem(s: Sketch, cx: float, cy: float, radius: float, colour: RGB, second: RGB) -> None:
    """The product's emblem about a point, in two colours; nothing for a product without one."""
    name = s.product.emblem
    if name is None:
        return
    if name in ("letter", "number"):
        mark = s.product.mark if name == "letter" else str(10 + round(s.product.shape[6] * 89))
        s.text(mark, (cx, cy), radius * 2.3 if name == "letter" else radius * 1.9, colour)
    elif name == "ring":
        s.fill(ellipse(cx, cy, radius), colour, shade=0, edge=0)
        s.fill(ellipse(cx, cy, radius * 0.55), second, shade=0, edge=0)
    elif name == "moon":
        s.fill(_moon(cx, cy, radius), colour, shade=0, edge=0)
        s.fill(star(cx + radius * 0.6, cy - radius * 0.4, radius * 0.45), second, shade=0, edge=0)
    elif name == "mountain":
        s.fill(ellipse(cx + radius * 0.45, cy - radius * 0.6, radius * 0.35), second, shade=0, edge=0)
        s.fill(_peaks(cx, cy, radius), colour, shade=0, edge=0)
    elif name == "cat":
        _cat(s, cx, cy, radius, colour, second)
    elif name == "face":
        face(s, cx, cy, radius, colour, second)
    else:
        s.fill(_outline(name, cx, cy, radius), colour, shade=0, edge=0)


def _outline(name: str, cx: float, cy: float, r: float) -> Outline:
    if name == "star":
        return star(cx, cy, r * 1.1)
    if name == "bolt":
        corners = [(0.2, -1.1), (-0.7, 0.15), (-0.08, 0.15), (-0.3, 1.1), (0.7, -0.25), (0.08, -0.25)]
        return [(cx + x * r, cy + y * r) for x, y in corners]
    if name == "wave":
        steps = [-1.2 + step * 0.1 for step in range(25)]
        upper = [(cx + x * r, cy + r * (0.35 * math.sin(x * 4) - 0.28)) for x in steps]
        return upper + [(x, y + r * 0.6) for x, y in upper[::-1]]
    if name == "leaf":
        leaf = trace([(0, -1.2), (0.9, -0.5, 0.8, 0.7, 0, 1.1), (-0.8, 0.7, -0.9, -0.5, 0, -1.2)])
        return rotate([(cx + x * r, cy + y * r) for x, y in leaf], 35, (cx, cy))
    arm = 0.34
    corners = [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm), (arm, 1), (-arm, 1), (-arm, arm),
               (-1, arm), (-1, -arm), (-arm, -arm)]  # fmt: skip
    return [(cx + x * r, cy + y * r) for x, y in corners]


def _moon(cx: float, cy: float, r: float) -> Outline:
    return ellipse(cx, cy, r, start=40, stop=320) + ellipse(cx + r * 0.42, cy, r * 0.72, start=300, stop=60)


def _peaks(cx: float, cy: float, r: float) -> Outline:
    corners = [(-1.2, 0.8), (-0.4, -0.8), (0.05, 0.0), (0.4, -0.4), (1.2, 0.8)]
    return [(cx + x * r, cy + y * r) for x, y in corners]


def _cat(s: Sketch, cx: float, cy: float, r: float, colour: RGB, second: RGB) -> None:
    for side in (-1, 1):
        ear = [(cx + side * r * 0.95, cy - r * 1.1), (cx + side * r * 0.9, cy), (cx + side * r * 0.1, cy - r * 0.7)]
        s.fill(ear, colour, shade=0, edge=0)
    s.fill(ellipse(cx, cy, r, r * 0.85), colour, shade=0, edge=0)
    for side in (-1, 1):
        s.fill(ellipse(cx + side * r * 0.4, cy - r * 0.1, r * 0.14, r * 0.2), second, shade=0, edge=0)
        for tilt in (-0.12, 0.12):
            start = (cx + side * r * 0.5, cy + r * 0.35)
            s.line([start, (cx + side * r * 1.2, cy + r * (0.35 + tilt))], second, r * 0.07)
    s.fill(box(cx - r * 0.12, cy + r * 0.2, cx + r * 0.12, cy + r * 0.32, r * 0.06), second, shade=0, edge=0)


def face(s: Sketch, cx: float, cy: float, r: float, colour: RGB, second: RGB) -> None:
    """A round character whose mood the product's shape decides."""
    s.fill(ellipse(cx, cy, r), colour, shade=0, edge=0)
    for side in (-1, 1):
        s.fill(ellipse(cx + side * r * 0.38, cy - r * 0.18, r * 0.12, r * 0.22), second, shade=0, edge=0)
    bend = s.vary(6, -0.3, 0.6)
    smile = trace([(cx - r * 0.45, cy + r * 0.35), (cx, cy + r * (0.35 + bend), cx + r * 0.45, cy + r * 0.35)])
    s.line(smile, second, r * 0.12)
