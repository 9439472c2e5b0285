"""Electronics."""

from __future__ import annotations

from listing_lens.demo.drawing.emblems import emblem
from listing_lens.demo.drawing.geometry import Outline, box, ellipse, symmetric, trace
from listing_lens.demo.drawing.sketch import Sketch
from listing_lens.demo.palette import darker, lighter

_DARK = (44, 44, 48)


def _game_pad(s: Sketch) -> None:
    grip, half = s.vary(0, 70, 82), s.vary(1, 38, 44)
    top = s.vary(2, 30, 36)
    for side in (1, -1):
        s.fill(
            box(min(50 + side * 16, 50 + side * 34), top - 5, max(50 + side * 16, 50 + side * 34), top + 8, 4),
            darker(s.main, 0.45),
        )
    body = symmetric(
        trace(
            [
                (50, top + 2),
                (62, top + 2),
                (72, top - 4, 50 + half - 6, top + 1),
                (50 + half + 2, top + 6, 50 + half + 3, grip - 12),
                (50 + half + 3, grip + 4, 50 + half - 7, grip + 3),
                (66, grip, 66, 62),
                (58, 59, 50, 59),
            ]
        )
    )
    s.fill(body, s.cloth, shade=0.55)
    if s.product.pattern is None and s.choose(3, (True, False, False)):
        s.fill(symmetric(trace([(50, top), (62, top), (60, 50, 64, 62), (50, 60)])), s.second, shade=0.15, clip=body)
    stick_low = s.choose(4, (True, False))
    left_stick, cross = ((38, 54), (26, 42)) if stick_low else ((26, 42), (38, 54))
    for x, y in (left_stick, (62.0, 54.0)):
        s.fill(ellipse(x, y, 6.8), darker(s.main, 0.55), shade=-0.2)
        s.fill(ellipse(x, y, 5), s.choose(5, (_DARK, s.accent, (210, 210, 214))), shade=0.6)
    for points in (
        box(cross[0] - 2, cross[1] - 6, cross[0] + 2, cross[1] + 6, 0.8),
        box(cross[0] - 6, cross[1] - 2, cross[0] + 6, cross[1] + 2, 0.8),
    ):
        s.fill(points, _DARK, shade=0.3)
    buttons = (
        ((226, 66, 60), (70, 140, 220), (90, 180, 90), (240, 196, 60)) if s.choose(6, (True, False)) else (_DARK,) * 4
    )
    for (x, y), colour in zip(((74, 36.5), (74, 47.5), (68.5, 42), (79.5, 42)), buttons, strict=True):
        s.fill(ellipse(x, y, 2.9), colour, shade=0.5)
    for x in (45.0, 55.0):
        s.fill(box(x - 2, 40, x + 2, 42, 0.9), _DARK, shade=0)
    if s.choose(7, (True, False)):
        s.fill(box(42, top + 4, 58, top + 15, 2), darker(s.main, 0.35), shade=0.2)
        emblem(s, 50, 50, 3, s.ink, s.accent)
    else:
        emblem(s, 50, 48, 4, s.ink, s.accent)


def _headphones(s: Sketch) -> None:
    top, half = s.vary(0, 8, 18), s.vary(1, 27, 34)
    cup_w, cup_h = s.vary(2, 9, 13), s.vary(3, 16, 22)
    cy = 66
    band = s.choose(4, (s.main, _DARK, s.second))
    arch = trace([(50 - half, cy - 6), (50 - half, top, 50, top), (50 + half, top, 50 + half, cy - 6)])
    s.line(arch, darker(band, 0.35), s.vary(5, 5, 8))
    s.line(arch, band, s.vary(5, 3.6, 6.4))
    s.line(arch[8:22], lighter(band, 0.3), s.vary(5, 1, 2.6))
    for side in (1, -1):
        x = 50 + side * half
        s.fill(box(x - 2, cy - cup_h - 6, x + 2, cy, 1), (186, 188, 194), shade=0.5)
        s.fill(
            ellipse(x - side * 6, cy, cup_w * 0.8, cup_h * 0.96),
            _DARK if s.choose(6, (True, False)) else lighter(s.second, 0.3),
            shade=0.5,
        )
        s.fill(ellipse(x + side * 1.5, cy, cup_w, cup_h), s.main, shade=0.6)
        s.fill(
            ellipse(x + side * 2.4, cy, cup_w * 0.62, cup_h * 0.66),
            s.choose(7, (s.second, darker(s.main, 0.25), s.accent)),
            shade=0.3,
        )
        emblem(s, x + side * 2.4, cy, cup_w * 0.4, s.ink, s.accent)
    if s.choose(0, (True, False, False)):
        s.line(trace([(50 - half, cy + cup_h), (50 - half, 98, 50, 92), (60, 90, 62, 97)]), _DARK, 1)


def _camera(s: Sketch) -> None:
    top, bottom = s.vary(0, 28, 34), s.vary(1, 74, 82)
    metal = s.choose(2, ((204, 204, 206), (48, 48, 52), (196, 176, 130)))
    radius = s.vary(3, 15, 20)
    hump = s.choose(4, ("prism", "flat", "flat"))
    if hump == "prism":
        s.fill([(38, top + 1), (42, top - 9), (58, top - 9), (62, top + 1)], metal, shade=0.4)
    for x in (20, 78):
        s.fill(box(x - 6, top - 5, x + 6, top + 2, 1), darker(metal, 0.15), shade=0.5)
    s.fill(box(66, top - 4, 72, top + 2, 1), s.accent)
    s.fill(box(9, top, 91, bottom, 5), metal, shade=0.45)
    s.fill(box(9.5, top + 10, 90.5, bottom - 6), s.cloth, shade=0.3)
    s.fill(box(72, top + 2.5, 86, top + 8.5, 1), (70, 80, 96), shade=0.2)
    s.fill(ellipse(22, top + 5, 2.4), (230, 226, 210) if s.choose(5, (True, False)) else (200, 60, 54))
    cx, cy = s.choose(6, (50, 46, 54)), (top + bottom) / 2 + 2
    for share, colour in ((1, _DARK), (0.86, metal), (0.74, (30, 30, 34)), (0.52, (46, 56, 92)), (0.3, (20, 22, 40))):
        s.fill(ellipse(cx, cy, radius * share), colour, shade=0.4)
    s.tint(ellipse(cx - radius * 0.24, cy - radius * 0.26, radius * 0.16), (255, 255, 255), 0.7)
    s.tint(ellipse(cx + radius * 0.16, cy + radius * 0.2, radius * 0.1), (170, 140, 220), 0.6)
    emblem(s, 80, cy + 4, 4.4, s.ink, s.second)
    if s.choose(7, (True, False)):
        strap = s.choose(6, ((110, 72, 46), _DARK, s.accent))
        s.line(trace([(10, top + 6), (-2, 40, 12, 92), (40, 97, 60, 92), (104, 92, 90, top + 6)]), strap, 2)


def _phone_case(s: Sketch) -> None:
    half, top, bottom = s.vary(0, 21, 24), s.vary(1, 5, 9), s.vary(2, 90, 95)
    s.fill(box(50 + half - 1, 26, 50 + half + 1.4, 36, 0.6), darker(s.main, 0.5))
    body = box(50 - half, top, 50 + half, bottom, s.vary(3, 5, 8))
    s.fill(body, s.cloth, shade=0.3)
    layout = s.choose(4, ("square", "bar", "column"))
    window = {
        "square": box(50 - half + 3, top + 3, 50 - half + 19, top + 20, 4),
        "bar": box(50 - half + 2, top + 4, 50 + half - 2, top + 13, 4),
        "column": box(50 - half + 4, top + 4, 50 - half + 12, top + 27, 4),
    }[layout]
    rows: dict[str, Outline] = {
        "square": [(50 - half + 7.4, top + 8), (50 - half + 14.4, top + 8), (50 - half + 7.4, top + 15.4)],
        "bar": [(42, top + 8.5), (50, top + 8.5), (58, top + 8.5)],
        "column": [(50 - half + 8, top + 9), (50 - half + 8, top + 15.6), (50 - half + 8, top + 22)],
    }
    s.fill(window, (56, 56, 62), shade=0.2)
    for x, y in rows[layout]:
        s.fill(ellipse(x, y, 2.9), (22, 22, 28))
        s.fill(ellipse(x, y, 1.5), (60, 80, 130), edge=0)
    emblem(s, 50, 56, s.vary(5, 10, 15), s.ink, s.second if s.ink == s.accent else s.accent)
    decoration = s.choose(6, ("none", "ring", "strap", "half"))
    if decoration == "ring" and s.product.emblem is None:
        s.fill(ellipse(50, 60, 8), (208, 208, 212), shade=0.4)
        s.fill(ellipse(50, 60, 5.4), s.second, shade=0.2)
    elif decoration == "strap":
        s.line(
            trace([(50 + half - 4, bottom - 2), (50 + half + 10, bottom - 8, 50 + half + 8, bottom - 26)]),
            s.accent,
            1.4,
        )
        s.fill(ellipse(50 + half + 8, bottom - 28, 3.4), s.second)
    elif decoration == "half" and s.product.pattern is None:
        s.fill(box(0, 72, 100, 100), s.second, shade=0, clip=body)
    s.tint(
        [(50 - half, top + 40), (50 + half, top + 4), (50 + half, top + 14), (50 - half, top + 54)],
        (255, 255, 255),
        0.14,
        clip=body,
    )
    s.line([*body, body[0]], darker(s.main, 0.35), 0.9)


DRAWINGS = {"game-pad": _game_pad, "headphones": _headphones, "camera": _camera, "phone-case": _phone_case}
