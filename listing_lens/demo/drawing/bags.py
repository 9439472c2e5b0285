"""Bags."""

from __future__ import annotations

from listing_lens.demo.drawing.emblems import emblem
from listing_lens.demo.drawing.geometry import box, ellipse, symmetric, trace
from listing_lens.demo.drawing.sketch import Sketch
from listing_lens.demo.palette import darker, lighter

_BRASS = (214, 178, 96)


def _handbag(s: Sketch) -> None:
    top, half, flare = s.vary(0, 38, 50), s.vary(1, 25, 34), s.vary(2, 0, 9)
    bottom = s.vary(3, 78, 88)
    arch = s.vary(4, 10, 22)
    trim = s.choose(5, (darker(s.main, 0.35), s.second, (110, 70, 44)))
    for offset, colour in ((3, darker(trim, 0.3)), (0, trim)):
        s.line(
            trace(
                [
                    (50 - half * 0.55, top + 4 - offset),
                    (
                        50 - half * 0.55,
                        top - arch * 1.6 - offset,
                        50 + half * 0.55,
                        top - arch * 1.6 - offset,
                        50 + half * 0.55,
                        top + 4 - offset,
                    ),
                ]
            ),
            colour,
            2.8,
        )
    body = symmetric(
        trace(
            [
                (50, top),
                (50 + half - 3, top),
                (50 + half, top, 50 + half, top + 4),
                (50 + half + flare, bottom - 5),
                (50 + half + flare, bottom, 50 + half + flare - 5, bottom),
                (50, bottom),
            ]
        )
    )
    s.fill(body, s.cloth, shade=0.5)
    for side in (1, -1):
        s.fill(ellipse(50 + side * half * 0.55, top + 5, 2.4), _BRASS)
    style = s.choose(6, ("flap", "zip", "buckle"))
    if style == "flap":
        depth = top + (bottom - top) * 0.55
        s.fill(
            symmetric(
                trace(
                    [(50, top - 1), (50 + half, top - 1), (50 + half + 1, depth - 8), (50 + half, depth, 50, depth + 4)]
                )
            ),
            s.main if s.product.pattern else darker(s.main, 0.1),
            shade=0.4,
        )
        s.fill(box(46, depth - 3, 54, depth + 5, 1.6), _BRASS, shade=0.6)
    elif style == "zip":
        s.line([(50 - half + 2, top + 3), (50 + half - 2, top + 3)], _BRASS, 1.2)
        s.fill(
            box(50 - half - flare * 0.7, bottom - 11, 50 + half + flare * 0.7, bottom - 0.5, 3),
            trim,
            shade=0.3,
            clip=body,
        )
    else:
        for x in (-0.55, 0.55):
            s.fill(box(50 + half * x - 3, top, 50 + half * x + 3, bottom - 8, 1), trim, shade=0.25)
            s.fill(box(50 + half * x - 3.8, top + 14, 50 + half * x + 3.8, top + 20, 1), _BRASS)
    s.stitches([(50 - half + step * 1.6, bottom - 2.4) for step in range(int(half * 1.25))], lighter(s.main, 0.45), 0.4)
    emblem(s, 50, top + (bottom - top) * 0.76, 4.5, s.ink, s.accent)


def _backpack(s: Sketch) -> None:
    half, top = s.vary(0, 23, 29), s.vary(1, 12, 20)
    bottom = 90
    s.line(trace([(44, top + 3), (44, top - 9, 56, top - 9, 56, top + 3)]), darker(s.main, 0.4), 2.4)
    for side in (1, -1):
        s.fill(
            trace(
                [
                    (50 + side * (half - 5), 30),
                    (50 + side * (half + 9), 38, 50 + side * (half + 5), 82),
                    (50 + side * (half - 2), 82),
                ]
            ),
            darker(s.main, 0.35),
        )
        s.fill(
            box(*sorted_span(50 + side * (half - 4), 50 + side * (half + 5), 60, bottom - 3), 3),
            darker(s.main, 0.2),
            shade=0.4,
        )
    body = symmetric(
        trace(
            [
                (50, top),
                (50 + half, top, 50 + half, top + 20),
                (50 + half + 2, bottom - 8),
                (50 + half + 1, bottom, 50 + half - 8, bottom),
                (50, bottom),
            ]
        )
    )
    s.fill(body, s.cloth, shade=0.5)
    s.line(
        trace(
            [
                (50 - half + 2, top + 24),
                (50 - half + 2, top + 4, 50, top + 5),
                (50 + half - 2, top + 4, 50 + half - 2, top + 24),
            ]
        ),
        darker(s.main, 0.55),
        0.9,
    )
    pocket_top = s.vary(2, 52, 62)
    colour = s.choose(3, (s.main, s.second, s.accent, darker(s.main, 0.2)))
    s.fill(
        symmetric(
            trace(
                [
                    (50, pocket_top),
                    (50 + half - 7, pocket_top),
                    (50 + half - 3, pocket_top, 50 + half - 3, pocket_top + 6),
                    (50 + half - 3, bottom - 4),
                    (50, bottom - 3),
                ]
            )
        ),
        colour,
        shade=0.45,
    )
    s.line([(50 - half + 6, pocket_top + 5), (50 + half - 6, pocket_top + 5)], darker(colour, 0.55), 1)
    s.fill(box(50 + half - 12, pocket_top + 5, 50 + half - 10, pocket_top + 11, 0.8), s.accent)
    if s.choose(4, (True, False)):
        for side in (1, -1):
            s.fill(
                box(50 + side * half * 0.55 - 2, top + 14, 50 + side * half * 0.55 + 2, pocket_top + 10, 0.8),
                (130, 86, 54),
                shade=0.3,
            )
    if s.choose(5, (False, True)):
        s.fill(box(44, top + 15, 56, top + 24, 2), (132, 88, 56))
    emblem(s, 50, top + 30 if s.choose(5, (False, True)) else top + 24, 6, s.ink, s.accent)
    if s.choose(6, (False, True)):
        s.fill(ellipse(50 - half * 0.55, pocket_top + 15, 3.6), lighter(s.accent, 0.1))


def sorted_span(x0: float, x1: float, top: float, bottom: float) -> tuple[float, float, float, float]:
    """A box's corners, whichever side comes first."""
    return min(x0, x1), top, max(x0, x1), bottom


def _tote(s: Sketch) -> None:
    top, half = s.vary(0, 36, 46), s.vary(1, 24, 32)
    bottom = s.vary(2, 84, 93)
    reach = s.vary(3, 3, 22)
    handle = s.choose(4, (s.main, s.second, (150, 104, 64)))
    for lift, colour in ((2.4, darker(handle, 0.35)), (0, darker(handle, 0.08))):
        s.line(
            trace(
                [
                    (50 - half * 0.45, top + 14),
                    (
                        50 - half * 0.45,
                        reach - lift - 8,
                        50 + half * 0.45,
                        reach - lift - 8,
                        50 + half * 0.45,
                        top + 14,
                    ),
                ]
            ),
            colour,
            3.2,
        )
    body = symmetric(
        trace(
            [
                (50, top + 1),
                (50 + half, top),
                (50 + half - 1, bottom - 8),
                (50 + half - 2, bottom, 50 + half - 6, bottom),
                (50, bottom + 1),
            ]
        )
    )
    s.fill(body, s.cloth, shade=0.35)
    if s.product.pattern is None and s.choose(5, (True, False)):
        s.fill(box(50 - half, bottom - (bottom - top) * 0.33, 50 + half, bottom + 2), s.second, shade=0, clip=body)
    for side in (1, -1):
        s.line([(50 + side * half * 0.45, top), (50 + side * half * 0.45, top + 15)], darker(handle, 0.08), 3.2)
    s.line([(50 - half, top + 3.4), (50 + half, top + 3.4)], darker(s.main, 0.35), 0.35)
    s.crease(trace([(50 - half + 6, top + 8), (50 - half + 10, 66, 50 - half + 4, bottom - 5)]))
    s.crease(trace([(50 + half - 9, top + 14), (50 + half - 12, 70, 50 + half - 5, bottom - 9)]))
    emblem(s, 50, top + (bottom - top) * 0.52, s.vary(6, 9, 13), s.ink, s.second if s.ink == s.accent else s.accent)


DRAWINGS = {"handbag": _handbag, "backpack": _backpack, "tote": _tote}
