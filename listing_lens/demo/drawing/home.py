"""Things for the home."""

from __future__ import annotations

import math

from listing_lens.demo.drawing.emblems import emblem
from listing_lens.demo.drawing.geometry import box, ellipse, rotate, symmetric, trace
from listing_lens.demo.drawing.sketch import Sketch
from listing_lens.demo.palette import darker, lighter, mix

_WOODS = ((160, 112, 68), (112, 74, 46), (206, 166, 118))


def _mug(s: Sketch) -> None:
    half, top, bottom = s.vary(0, 22, 28), s.vary(1, 20, 32), s.vary(2, 78, 86)
    taper = s.choose(3, (0, 0, 5, 8))
    cx = 44
    grip = s.vary(4, 13, 19)
    middle = (top + bottom) / 2
    handle = s.choose(5, (s.main, s.main, s.second))
    ring = ellipse(cx + half + 3, middle, grip, (bottom - top) * 0.32)
    s.fill(ring, handle, shade=0.4)
    s.hole(ellipse(cx + half + 3, middle, grip - 5, (bottom - top) * 0.32 - 5))
    s.line(ellipse(cx + half + 3, middle, grip - 5, (bottom - top) * 0.32 - 5), darker(handle, 0.45), 0.5)
    body = trace(
        [
            (cx - half, top),
            (cx + half, top),
            (cx + half - taper, bottom - 6),
            (cx + half - taper - 2, bottom + 2, cx, bottom + 3),
            (cx - half + taper + 2, bottom + 2, cx - half + taper, bottom - 6),
        ]
    )
    s.fill(body, s.cloth, shade=0.6)
    if s.product.pattern is None and s.choose(6, (False, True, False)):
        s.fill(box(cx - half, top + (bottom - top) * 0.6, cx + half, bottom + 6), s.second, shade=0.2, clip=body)
    emblem(s, cx, middle + 2, 10, s.ink, s.second if s.ink == s.accent else s.accent)
    s.tint(
        trace(
            [
                (cx - half + 4, top + 8),
                (cx - half + 8, top + 8),
                (cx - half + taper + 9, bottom - 8),
                (cx - half + taper + 6, bottom - 8),
            ]
        ),
        (255, 255, 255),
        0.35,
        clip=body,
    )
    s.fill(ellipse(cx, top, half, 6.4), lighter(s.main, 0.25), shade=0.2)
    s.fill(
        ellipse(cx, top + 0.6, half - 2, 5),
        s.choose(7, (lighter(s.main, 0.7), darker(s.main, 0.4), (92, 58, 36))),
        shade=0.1,
    )


def _teapot(s: Sketch) -> None:
    width, height = s.vary(0, 22, 28), s.vary(1, 18, 26)
    cx, cy = 48, 60
    spout = s.vary(2, 36, 48)
    s.line(
        trace(
            [(cx + width - 4, cy - 8), (cx + width + 22, cy - 20, cx + width + 20, cy + 18, cx + width - 4, cy + 10)]
        ),
        darker(s.main, 0.12),
        4.2,
    )
    s.fill(
        trace(
            [
                (cx - width + 6, cy - 2),
                (cx - width - 8, cy - 4, cx - width - 14, spout),
                (cx - width - 19, spout - 2),
                (cx - width - 18, cy + 10, cx - width + 8, cy + 14),
            ]
        ),
        s.main,
        shade=0.5,
    )
    body = ellipse(cx, cy, width, height)
    s.fill(box(cx - width * 0.5, cy + height - 4, cx + width * 0.5, cy + height + 3, 2), darker(s.main, 0.2))
    s.fill(body, s.cloth, shade=0.65)
    if s.product.pattern is None and s.choose(3, (True, False)):
        s.fill(box(cx - width, cy - 4, cx + width, cy + 5), s.second, shade=0.1, clip=body)
    lid = trace(
        [
            (cx - width * 0.55, cy - height * 0.82),
            (cx, cy - height * s.vary(4, 1.3, 1.9), cx + width * 0.55, cy - height * 0.82),
            (cx, cy - height * 0.72, cx - width * 0.55, cy - height * 0.82),
        ]
    )
    s.fill(lid, s.choose(5, (s.main, s.second)), shade=0.45)
    s.fill(
        ellipse(cx, cy - height * s.vary(4, 1.1, 1.42) - 1, 3.6), s.choose(6, (s.accent, s.main, _WOODS[0])), shade=0.6
    )
    s.tint(ellipse(cx - width * 0.45, cy - height * 0.35, 4, 7), (255, 255, 255), 0.4)
    emblem(s, cx + 2, cy + 2, 8, s.ink, s.accent)


def _plate(s: Sketch) -> None:
    radius = s.vary(0, 36, 44)
    rim = s.vary(1, 0.62, 0.76)
    flat = s.vary(2, 0.86, 1)
    s.fill(ellipse(50, 50, radius, radius * flat), s.cloth, shade=0.25)
    border = s.choose(3, ("band", "petals", "dots", "lines"))
    if border == "band":
        s.fill(ellipse(50, 50, radius * 0.95, radius * 0.95 * flat), s.second, shade=0, edge=0)
        s.fill(ellipse(50, 50, radius * 0.88, radius * 0.88 * flat), s.cloth, shade=0, edge=0)
    inner = s.choose(4, (s.main, lighter(s.main, 0.5), lighter(s.second, 0.6)))
    if border in ("petals", "dots"):
        for step in range(18 if border == "dots" else 12):
            angle = step * math.tau / (18 if border == "dots" else 12)
            x, y = 50 + radius * 0.86 * math.cos(angle), 50 + radius * 0.86 * flat * math.sin(angle)
            leaf = ellipse(x, y, radius * 0.1, radius * 0.05) if border == "petals" else ellipse(x, y, radius * 0.045)
            s.fill(rotate(leaf, math.degrees(angle), (x, y)), s.ink if step % 2 else s.accent, shade=0, edge=0)
    elif border == "lines":
        for share in (0.97, 0.9, 0.84):
            s.line(ellipse(50, 50, radius * share, radius * share * flat), s.ink, 0.8)
    s.fill(ellipse(50, 50, radius * rim, radius * rim * flat), inner, shade=-0.16, edge=0.3)
    s.line(ellipse(50, 50, radius * rim * 0.95, radius * rim * 0.95 * flat, 190, 290), lighter(inner, 0.7), 0.8)
    emblem(s, 50, 50, radius * 0.34, s.second if inner == s.main else darker(s.accent, 0.1), s.accent)


def _bottle(s: Sketch) -> None:
    half, shoulder = s.vary(0, 11, 17), s.vary(1, 24, 36)
    neck = half * s.vary(2, 0.45, 0.95)
    cap = s.choose(3, (darker(s.main, 0.3), s.second, (60, 60, 64), (200, 202, 206), _WOODS[2]))
    s.fill(box(50 - neck, 7, 50 + neck, 20, 2.5), cap, shade=0.6)
    for step in range(-3, 4):
        s.line([(50 + neck * step / 4, 9), (50 + neck * step / 4, 18)], darker(cap, 0.3), 0.4)
    if s.choose(4, (False, True, False)):
        s.line(ellipse(50 + neck + 2, 12, 5, 6), cap, 1.6)
    body = symmetric(
        trace(
            [
                (50, 19),
                (50 + neck - 0.5, 19),
                (50 + neck, 24, 50 + half, shoulder),
                (50 + half, 90),
                (50 + half, 95, 50 + half - 4, 95),
                (50, 95),
            ]
        )
    )
    s.fill(body, s.cloth, shade=0.7)
    base = s.choose(5, (None, s.second, (196, 198, 202)))
    if base:
        s.fill(box(50 - half, 82, 50 + half, 96), base, shade=0.35, clip=body)
    s.tint(box(50 - half * 0.7, shoulder + 4, 50 - half * 0.42, 88, 1.5), (255, 255, 255), 0.4, clip=body)
    emblem(s, 50, 58, half * 0.62, s.ink, s.second if s.ink == s.accent else s.accent)
    if s.product.emblem is None and s.choose(6, (True, False)):
        s.text(s.product.mark + s.product.mark.lower(), (50, 56), half * 0.9, s.ink)


def _vase(s: Sketch) -> None:
    neck, belly = s.vary(0, 5, 13), s.vary(1, 16, 27)
    top, bulge = s.vary(2, 30, 40), s.vary(3, 54, 74)
    stems = s.choose(4, (0, 3, 5))
    for step in range(stems):
        x = 50 + (step - (stems - 1) / 2) * 9
        tip = (x, 12 + abs(step - (stems - 1) / 2) * 4)
        s.line(trace([(50, top), (50, 24, *tip)]), (58, 104, 58), 1.7)
        for petal in range(6):
            angle = petal * math.tau / 6
            s.fill(
                ellipse(tip[0] + 3 * math.cos(angle), tip[1] + 3 * math.sin(angle), 2.5), s.accent, shade=0.2, edge=0.2
            )
        s.fill(ellipse(*tip, 1.8), (240, 200, 90), edge=0.2)
    body = symmetric(
        trace(
            [
                (50, top),
                (50 + neck + 3, top),
                (50 + neck, top + 6),
                (50 + neck, top + 12, 50 + belly, bulge - 12, 50 + belly, bulge),
                (50 + belly, 88, 50 + belly * 0.6, 93),
                (50, 94),
            ]
        )
    )
    s.fill(body, s.cloth, shade=0.65)
    if s.product.pattern is None:
        for share in s.choose(5, ((), (0.3,), (0.3, 0.4, 0.5), (0.62,))):
            y = top + (94 - top) * share
            s.fill(box(20, y, 80, y + 3), s.second, shade=0, clip=body)
    s.fill(ellipse(50, top, neck + 3, 2.4), darker(s.main, 0.5), shade=0)
    s.line(ellipse(50, top, neck + 3, 2.4), lighter(s.main, 0.3), 0.8)
    s.tint(ellipse(50 - belly * 0.5, bulge - 4, 2.6, 9), (255, 255, 255), 0.38)


def _cushion(s: Sketch) -> None:
    half = s.vary(0, 33, 40)
    puff = s.vary(1, 3, 9)
    if s.choose(2, ("square", "square", "round")) == "round":
        s.fill(ellipse(50, 50, half + 3), s.cloth, shade=0.6)
        for step in range(14):
            angle = step * math.tau / 14
            s.crease(
                [
                    (50 + 5 * math.cos(angle), 50 + 5 * math.sin(angle)),
                    (50 + half * 0.7 * math.cos(angle), 50 + half * 0.7 * math.sin(angle)),
                ],
                0.16,
            )
        s.fill(ellipse(50, 50, 4), s.ink)
        return
    near, far = 50 - half, 50 + half
    outline = trace(
        [
            (near, near),
            (50, near + puff, far, near),
            (far - puff, 50, far, far),
            (50, far - puff, near, far),
            (near + puff, 50, near, near),
        ]
    )
    s.fill(outline, s.cloth, shade=0.6)
    trim = s.choose(3, ("none", "piping", "tassels", "fringe"))
    if trim == "piping":
        s.line([*outline, outline[0]], s.ink, 1.6)
    elif trim == "tassels":
        for x, y in ((near, near), (far, near), (far, far), (near, far)):
            s.fill(ellipse(x, y, 3.6, 3.6), s.accent)
    elif trim == "fringe":
        for step in range(34):
            y = near + 1 + step * (far - near - 2) / 33
            bow = puff * (1 - abs(y - 50) / half)
            s.line([(near + bow - 4, y), (near + bow, y)], lighter(s.second, 0.2), 0.8)
            s.line([(far - bow, y), (far - bow + 4, y)], lighter(s.second, 0.2), 0.8)
    for x0, y0, x1, y1 in (
        (near + 4, near + 4, near + 17, near + 13),
        (far - 4, near + 4, far - 15, near + 15),
        (near + 5, far - 4, near + 14, far - 15),
        (far - 4, far - 4, far - 16, far - 12),
    ):
        s.crease([(x0, y0), (x1, y1)], 0.25)
    emblem(s, 50, 50, half * 0.36, s.ink, s.second if s.ink == s.accent else s.accent)


def _lamp(s: Sketch) -> None:
    top, bottom = s.vary(0, 9, 17), s.vary(1, 22, 32)
    shade_end = s.vary(2, 44, 56)
    narrow = bottom * s.vary(3, 0.35, 0.95)
    foot = s.choose(4, (_WOODS[0], _WOODS[1], s.second, (208, 178, 110), (60, 60, 62)))
    style = s.choose(5, ("stick", "gourd", "tripod"))
    if style == "tripod":
        for x in (-17, 0, 17):
            s.line([(50 + x * 0.15, shade_end - 3), (50 + x, 93)], darker(foot, 0.1 if x else 0.3), 2.4)
    else:
        s.fill(ellipse(50, 92, 16, 4), darker(foot, 0.15), shade=0.5)
        if style == "stick":
            s.fill(box(48.4, shade_end - 3, 51.6, 92), foot, shade=0.5)
        else:
            s.fill(
                symmetric(
                    trace(
                        [
                            (50, shade_end - 2),
                            (53, shade_end),
                            (53, shade_end + 8, 64, 66, 63, 78),
                            (62, 90, 58, 91),
                            (50, 92),
                        ]
                    )
                ),
                foot,
                shade=0.65,
            )
    shade = symmetric(
        trace([(50, top), (50 + narrow, top), (50 + bottom, shade_end), (50, shade_end + 3, 50, shade_end + 2.5)])
    )
    s.fill(shade, s.cloth, shade=0.3)
    s.tint(ellipse(50, shade_end - 8, bottom * 0.6, 13), (255, 240, 190), 0.35, clip=shade)
    for points in (
        [(50 - narrow, top), (50 + narrow, top)],
        trace([(50 - bottom, shade_end), (50, shade_end + 5, 50 + bottom, shade_end)]),
    ):
        s.line(points, s.ink if s.choose(6, (True, False)) else darker(s.main, 0.3), 1.3)
    if s.choose(7, (True, False)):
        s.line([(50 + bottom * 0.5, shade_end + 1), (50 + bottom * 0.5, shade_end + 13)], (190, 170, 120), 0.5)
        s.fill(ellipse(50 + bottom * 0.5, shade_end + 14, 1.4), (200, 180, 130))


def _chair(s: Sketch) -> None:
    half = s.vary(0, 20, 25)
    back = s.vary(1, 6, 22)
    seat = s.vary(2, 52, 58)
    wood = s.choose(3, (*_WOODS, (60, 58, 58), lighter(s.second, 0.1)))
    splay = s.vary(4, 0, 7)
    for side in (1, -1):
        s.fill(
            [
                (50 + side * (half - 8), seat + 6),
                (50 + side * (half - 4), seat + 6),
                (50 + side * (half - 4 + splay), 86),
                (50 + side * (half - 7 + splay), 86),
            ],
            darker(wood, 0.35),
        )
    style = s.choose(5, ("panel", "slats", "round", "ladder"))
    if style == "panel":
        s.fill(box(50 - half, back, 50 + half, seat - 4, 5), s.cloth, shade=0.5)
    elif style == "round":
        s.fill(ellipse(50, (back + seat) / 2 - 2, half, (seat - back) / 2), s.cloth, shade=0.5)
    else:
        for side in (1, -1):
            s.fill(box(50 + side * (half - 2) - 2, back, 50 + side * (half - 2) + 2, seat + 2, 1.4), wood, shade=0.5)
        if style == "slats":
            for step in range(-2, 3):
                s.fill(
                    box(50 + step * half * 0.33 - 1.6, back + 4, 50 + step * half * 0.33 + 1.6, seat), wood, shade=0.4
                )
            s.fill(box(50 - half, back, 50 + half, back + 7, 2), wood, shade=0.5)
        else:
            for step in range(3):
                y = back + 2 + step * (seat - back - 6) / 3
                s.fill(box(50 - half + 2, y, 50 + half - 2, y + 6, 2), wood, shade=0.5)
    s.fill(
        symmetric(
            trace(
                [
                    (50, seat - 5),
                    (50 + half - 1, seat - 5),
                    (50 + half + 5, seat + 5),
                    (50 + half + 4, seat + 9, 50 + half, seat + 9),
                    (50, seat + 9),
                ]
            )
        ),
        s.cloth,
        shade=0.5,
    )
    for side in (1, -1):
        s.fill(
            [
                (50 + side * (half - 3), seat + 8),
                (50 + side * (half + 3), seat + 8),
                (50 + side * (half + 3 + splay), 96),
                (50 + side * (half - 0.5 + splay), 96),
            ],
            wood,
            shade=0.5,
        )
    if s.choose(6, (True, False)):
        s.line([(50 - half - splay * 0.5, 78), (50 + half + splay * 0.5, 78)], darker(wood, 0.15), 2)
    if s.choose(7, (False, False, True)) and style in ("panel", "round"):
        for x in (-0.5, 0, 0.5):
            s.fill(ellipse(50 + half * x, (back + seat) / 2 - 2, 1.5), mix(s.main, s.ink, 0.6))


DRAWINGS = {
    "mug": _mug,
    "teapot": _teapot,
    "plate": _plate,
    "bottle": _bottle,
    "vase": _vase,
    "cushion": _cushion,
    "lamp": _lamp,
    "chair": _chair,
}
