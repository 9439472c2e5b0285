"""Cards, books, posters, instruments and sports."""

from __future__ import annotations

import math

from listing_lens.demo.drawing.emblems import emblem, face
from listing_lens.demo.drawing.geometry import Outline, box, ellipse, rotate, star, symmetric, trace
from listing_lens.demo.drawing.sketch import Sketch
from listing_lens.demo.palette import RGB, darker, lighter, mix


def _card(s: Sketch) -> None:
    s.fill(
        box(22, 8, 78, 92, 3.5),
        s.choose(0, ((244, 214, 92), (206, 208, 214), (246, 244, 238), (40, 38, 44))),
        shade=0.25,
    )
    s.fill(box(25.5, 11.5, 74.5, 88.5, 2), s.main, shade=0.1, edge=0.3)
    s.fill(box(28, 19, 72, 57, 1), s.cloth if s.product.pattern else lighter(s.second, 0.35), shade=0, edge=0.6)
    window = box(28, 19, 72, 57, 1)
    for step in range(10):
        ray = [
            (50, 40),
            (50 + 60 * math.cos(step * 0.628), 40 + 60 * math.sin(step * 0.628)),
            (50 + 60 * math.cos(step * 0.628 + 0.3), 40 + 60 * math.sin(step * 0.628 + 0.3)),
        ]
        s.tint(ray, lighter(s.accent, 0.4), 0.35, clip=window)
    _creature(s, 50, 40, 13, s.accent, s.second)
    s.text(
        s.product.brand.split()[0][:9] if s.product.brand.isascii() else "HIKARI", (45, 15.4), 5.4, _readable(s.main)
    )
    s.text(str(round(s.vary(1, 4, 30)) * 10), (68, 15.4), 5, _readable(s.main))
    s.fill(box(28, 60, 72, 86, 1), lighter(s.main, 0.72), shade=0, edge=0.3)
    for step, share in enumerate((0.95, 0.8, 0.9, 0.55)):
        s.line([(31, 70 + step * 4), (31 + 38 * share, 70 + step * 4)], (96, 92, 100), 0.8)
    for step in range(s.choose(2, (1, 2, 3, 4, 5))):
        s.fill(star(32 + step * 5.5, 64.6, 2.3), (226, 168, 50), edge=0)
    if s.choose(3, (True, False, False)):
        s.tint([(22, 8), (40, 8), (78, 70), (78, 92), (74, 92)], (255, 255, 255), 0.22, clip=box(22, 8, 78, 92, 3.5))


def _readable(colour: RGB) -> RGB:
    return (30, 28, 34) if sum(colour) > 400 else (246, 244, 240)


def _creature(s: Sketch, cx: float, cy: float, r: float, colour: RGB, second: RGB) -> None:
    """A made-up monster of which the product's shape decides ears, eyes and limbs."""
    ears = s.choose(4, ("horns", "round", "long", "fins"))
    for side in (1, -1):
        if ears == "horns":
            s.fill(
                [
                    (cx + side * r * 0.2, cy - r * 0.8),
                    (cx + side * r * 0.8, cy - r * 0.6),
                    (cx + side * r, cy - r * 1.5),
                ],
                second,
                edge=0.4,
            )
        elif ears == "round":
            s.fill(ellipse(cx + side * r * 0.75, cy - r * 0.8, r * 0.4), colour, edge=0.4)
        elif ears == "long":
            s.fill(
                rotate(ellipse(cx + side * r * 0.5, cy - r * 1.1, r * 0.24, r * 0.7), side * 18, (cx, cy)),
                colour,
                edge=0.4,
            )
        else:
            s.fill(
                [
                    (cx + side * r * 0.8, cy - r * 0.4),
                    (cx + side * r * 1.6, cy - r * 0.8),
                    (cx + side * r * 1.5, cy + r * 0.4),
                ],
                second,
                edge=0.4,
            )
        s.fill(ellipse(cx + side * r * 0.55, cy + r * 0.95, r * 0.34, r * 0.24), darker(colour, 0.2), edge=0.4)
    s.fill(ellipse(cx, cy, r * s.vary(5, 0.8, 1.1), r), colour, shade=0.5, edge=0.4)
    s.fill(ellipse(cx, cy + r * 0.4, r * 0.55, r * 0.45), lighter(colour, 0.55), shade=0.1, edge=0)
    eyes = s.choose(6, (1, 2, 2, 3))
    for step in range(eyes):
        x = cx + (step - (eyes - 1) / 2) * r * 0.62
        s.fill(ellipse(x, cy - r * 0.25, r * 0.22, r * 0.27), (255, 255, 255), shade=0, edge=0.3)
        s.fill(ellipse(x, cy - r * 0.2, r * 0.1, r * 0.15), (26, 24, 30), shade=0, edge=0)
    s.line(
        trace([(cx - r * 0.3, cy + r * 0.18), (cx, cy + r * s.vary(7, 0.2, 0.5), cx + r * 0.3, cy + r * 0.18)]),
        (60, 30, 40),
        0.8,
    )


def _poster(s: Sketch) -> None:
    half = s.vary(0, 28, 33)
    frame = s.choose(1, ((36, 34, 36), (170, 124, 80), (244, 242, 238), None))
    sheet = box(50 - half, 7, 50 + half, 93)
    if frame:
        s.fill(box(50 - half - 3, 4, 50 + half + 3, 96, 0.6), frame, shade=0.3)
    s.fill(sheet, lighter(s.main, 0.6) if s.product.pattern is None else s.cloth, shade=0)
    scene = s.choose(2, ("landscape", "portrait", "shapes", "city"))
    if scene == "landscape":
        s.fill(ellipse(50 + s.vary(3, -14, 14), 32, s.vary(4, 8, 14)), s.accent, shade=0, edge=0)
        for step, colour in enumerate((lighter(s.second, 0.3), s.second, s.main, darker(s.main, 0.4))):
            level = 48 + step * 9
            ridge = trace(
                [
                    (15, level + s.vary(step % 8, -8, 8)),
                    (34, level - 22 * s.product.shape[step], 50, level),
                    (68, level + 16 * s.product.shape[step + 1], 85, level - 6),
                    (85, 95),
                    (15, 95),
                ]
            )
            s.fill(ridge, colour, shade=0, clip=sheet)
    elif scene == "portrait":
        s.fill(ellipse(50, 46, half * 0.86), s.accent, shade=0, edge=0)
        _creature(s, 50, 48, 17, s.main if s.product.pattern is None else s.second, s.second)
    elif scene == "shapes":
        for step in range(6):
            x, y = 50 + (s.product.shape[step] - 0.5) * half * 1.3, 18 + 60 * s.product.shape[(step * 3 + 1) % 8]
            colour = (s.main, s.second, s.accent)[step % 3]
            radius = 7 + 10 * s.product.shape[step + 2]
            shape = (
                ellipse(x, y, radius),
                box(x - radius, y - radius, x + radius, y + radius),
                [(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)],
            )[step % 3]
            s.fill(rotate(shape, step * 25, (x, y)), colour, shade=0, clip=sheet)
    else:
        for step in range(7):
            x = 50 - half + step * half * 2 / 7
            top = 34 + 34 * s.product.shape[step]
            tower = box(x, top, x + half * 2 / 7 - 0.6, 82)
            s.fill(tower, (s.main, s.second, darker(s.main, 0.35))[step % 3], shade=0.1, clip=sheet)
            for row in range(int((80 - top) / 6)):
                s.fill(box(x + 2, top + 3 + row * 6, x + 4.4, top + 6 + row * 6), (250, 226, 140), shade=0, edge=0)
    title = (s.product.brand if s.product.brand.isascii() else "MIDORI").upper()[:12]
    s.fill(box(50 - half, 80, 50 + half, 93), lighter(s.main, 0.85), shade=0, edge=0)
    s.text(title, (50, 86.5), 6, darker(s.second, 0.35))


def _book(s: Sketch) -> None:
    half, top, bottom = s.vary(0, 25, 30), 10, s.vary(1, 84, 92)
    s.fill(box(50 - half + 4, top + 3, 50 + half + 4, bottom + 3, 0.8), (238, 232, 216), shade=0.2)
    for step in range(4):
        s.line([(50 + half + 1 + step * 0.8, top + 4), (50 + half + 1 + step * 0.8, bottom + 2)], (200, 194, 176), 0.3)
    cover = box(50 - half, top, 50 + half, bottom, 1)
    s.fill(cover, s.cloth, shade=0.2)
    s.tint(box(50 - half, top, 50 - half + 5, bottom), (10, 8, 20), 0.25, clip=cover)
    plate = s.choose(2, (lighter(s.main, 0.8), s.second, darker(s.main, 0.4)))
    layout = s.choose(3, ("top", "band", "bottom"))
    title_y = {"top": top + 13, "band": 46, "bottom": bottom - 16}[layout]
    s.fill(box(50 - half + 7, title_y - 8, 50 + half - 3, title_y + 9, 1), plate, shade=0, edge=0.3)
    words = s.choose(4, ("NIGHT", "RIVER", "SNOW", "ECHO", "TOKYO", "ORBIT", "HARU", "ISLAND", "CODE", "LETTERS"))
    s.text(words, (52, title_y - 1), s.vary(5, 7, 9.5), _readable(plate))
    s.line([(52 - 9, title_y + 5.5), (52 + 9, title_y + 5.5)], _readable(plate), 0.6)
    picture_y = 62 if layout == "top" else 28 if layout == "bottom" else 72
    emblem(s, 52, picture_y, 11, s.ink, s.second if s.ink == s.accent else s.accent)
    if layout == "band":
        s.fill(ellipse(52, 25, 7), s.accent, shade=0.1, edge=0)
    if s.choose(6, (True, False)):
        s.fill(
            box(50 - half, bottom - 13, 50 + half, bottom, 0.6),
            s.choose(7, ((236, 70, 60), (250, 214, 60), (70, 130, 200))),
            shade=0.1,
        )
        s.line([(50 - half + 9, bottom - 6.5), (50 + half - 9, bottom - 6.5)], (250, 248, 240), 2)


def _guitar(s: Sketch) -> None:
    style = s.choose(0, ("single", "horns", "acoustic"))
    neck = s.choose(1, ((196, 150, 94), (96, 62, 40)))
    s.fill([(47.4, 14), (52.6, 14), (53, 66), (47, 66)], neck, shade=0.3)
    for step in range(10):
        s.line([(47.2, 18 + step * 4.2), (52.8, 18 + step * 4.2)], (214, 212, 204), 0.4)
    s.fill(trace([(46, 16), (45, 3), (51, 1, 55, 4), (54, 16)]), s.choose(2, (s.main, neck, (40, 34, 32))), shade=0.4)
    for step in range(3):
        for x in (43.6, 56.4):
            s.fill(ellipse(x, 5 + step * 4, 1.2), (212, 208, 200), edge=0.2)
    waist, lower = s.vary(3, 13, 17), s.vary(4, 20, 26)
    if style == "acoustic":
        body = symmetric(
            trace(
                [
                    (50, 50),
                    (64, 48, 67, 58),
                    (67, 62, 50 + waist, 67),
                    (50 + lower + 4, 74, 50 + lower, 88),
                    (50 + lower - 6, 97, 50, 97),
                ]
            )
        )
    else:
        horn = 42 if style == "horns" else 56
        right = trace(
            [
                (52.8, 60),
                (57, 60, 62, horn + 5),
                (70, horn + 6, 67, 60),
                (65, 68, 50 + lower, 76),
                (50 + lower + 3, 94, 50, 97),
            ]
        )
        left = trace(
            [(47.2, 56), (42, 56, 38, 46), (28, 44, 32, 58), (35, 66, 50 - lower, 76), (50 - lower - 3, 94, 50, 97)]
        )
        body = right + left[::-1]
    s.fill(body, s.cloth, shade=0.6)
    if style == "acoustic":
        s.fill(ellipse(50, 70, 7), (48, 32, 24), shade=0)
        s.line(ellipse(50, 70, 8), s.accent, 0.9)
        s.fill(box(41, 84, 59, 87, 1), (60, 40, 30))
    else:
        guard: RGB = s.choose(5, ((246, 244, 238), (40, 38, 40), s.second))
        s.fill(trace([(52, 62), (64, 62), (60, 76, 66, 88), (58, 92, 53, 84), (45, 78, 46, 64)]), guard, shade=0.15)
        for y in (70, 77):
            s.fill(box(44, y, 56, y + 3.4, 1), (50, 48, 50))
        s.fill(box(43, 85, 57, 89.4, 0.8), (206, 206, 210), shade=0.5)
        for step in range(2):
            s.fill(ellipse(62 + step * 4.4, 84 + step * 3.6, 2), (222, 190, 110))
    s.fill([(47.2, 54), (52.8, 54), (53, 66), (47, 66)], neck, shade=0.2)
    for step in range(4):
        s.line([(48.2 + step * 1.2, 12), (48 + step * 1.3, 86)], (226, 224, 216), 0.22)


def _ball(s: Sketch) -> None:
    radius = s.vary(0, 36, 44)
    outline = ellipse(50, 50, radius)
    style = s.choose(1, ("football", "basket", "volley", "beach", "baseball"))
    base = (
        s.main
        if style in ("basket", "volley")
        else lighter(s.main, 0.82)
        if style in ("football", "baseball")
        else s.main
    )
    s.fill(outline, base, shade=0)
    dark = darker(s.second, 0.25)
    if style == "football":
        s.fill(_pentagon(50, 50, radius * 0.32), dark, shade=0, clip=outline)
        for step in range(5):
            angle = math.radians(step * 72 - 90)
            x, y = 50 + radius * 0.92 * math.cos(angle), 50 + radius * 0.92 * math.sin(angle)
            s.fill(_pentagon(x, y, radius * 0.34, 36), dark, shade=0, clip=outline)
            s.line(
                [
                    (50 + radius * 0.32 * math.cos(angle), 50 + radius * 0.32 * math.sin(angle)),
                    (50 + radius * 0.6 * math.cos(angle), 50 + radius * 0.6 * math.sin(angle)),
                ],
                darker(base, 0.5),
                0.8,
            )
    elif style == "basket":
        for points in (
            [(50 - radius, 50), (50 + radius, 50)],
            [(50, 50 - radius), (50, 50 + radius)],
            ellipse(50 - radius * 1.1, 50, radius * 0.72, start=-60, stop=60),
            ellipse(50 + radius * 1.1, 50, radius * 0.72, start=120, stop=240),
        ):
            inside = [(x, y) for x, y in points if (x - 50) ** 2 + (y - 50) ** 2 <= radius**2 + 1]
            s.line(inside, darker(base, 0.75), 1.3)
    elif style == "volley":
        colours = (s.main, s.second, s.accent)
        for step in range(6):
            sector = [(50, 50), *ellipse(50 + radius * 0.3, 50, radius * 1.4, start=step * 60, stop=step * 60 + 60)]
            s.fill(sector, colours[step % 3], shade=0, clip=outline)
        for step in range(6):
            angle = math.radians(step * 60)
            s.line(
                trace(
                    [
                        (50, 50),
                        (
                            50 + radius * 0.5 * math.cos(angle - 0.3),
                            50 + radius * 0.5 * math.sin(angle - 0.3),
                            50 + radius * 0.98 * math.cos(angle),
                            50 + radius * 0.98 * math.sin(angle),
                        ),
                    ]
                ),
                darker(s.main, 0.5),
                0.7,
            )
    elif style == "beach":
        for step in range(6):
            sector = [(44, 40), *ellipse(50, 50, radius * 1.5, start=step * 60, stop=step * 60 + 60)]
            s.fill(
                sector,
                (s.main, (246, 244, 240), s.second, (246, 244, 240), s.accent, (246, 244, 240))[step],
                shade=0,
                clip=outline,
            )
        s.fill(ellipse(44, 40, 4.4), (246, 244, 240))
    else:
        for side in (1, -1):
            seam = ellipse(
                50 + side * radius * 1.15,
                50,
                radius * 0.85,
                start=90 + (90 if side == 1 else -90) - 52,
                stop=90 + (90 if side == 1 else -90) + 52,
            )
            s.line(seam, dark, 0.7)
            for x, y in seam[1::2]:
                s.line([(x - 1.8, y - 1.1), (x + 1.8, y + 1.1)], dark, 0.8)
        s.text(s.product.mark, (50, 50), 12, dark)
    s.tint(ellipse(50 + radius * 0.14, 50 + radius * 0.16, radius * 0.99), (10, 8, 20), 0.0)
    for share in (0.12, 0.2, 0.28):
        crescent = ellipse(50, 50, radius, start=-30, stop=120) + ellipse(
            50 - radius * share, 50 - radius * share, radius, start=120, stop=-30
        )
        s.tint(crescent, (10, 8, 24), 0.16, clip=outline)
    s.tint(ellipse(50 - radius * 0.4, 50 - radius * 0.45, radius * 0.2, radius * 0.15), (255, 255, 255), 0.35)
    s.line([*outline, outline[0]], darker(base, 0.5), 0.6)


def _pentagon(cx: float, cy: float, radius: float, turn: float = 0) -> Outline:
    angles = [math.radians(step * 72 - 90 + turn) for step in range(5)]
    return [(cx + radius * math.cos(angle), cy + radius * math.sin(angle)) for angle in angles]


def _racket(s: Sketch) -> None:
    width, height = s.vary(0, 18, 23), s.vary(1, 24, 29)
    cy = 4 + height
    thick = s.vary(2, 2.6, 4.2)
    strings = lighter(s.accent, 0.6)
    hoop = ellipse(50, cy, width, height)
    for step in range(-6, 7):
        x = step * width / 7
        reach = height * math.sqrt(1 - (x / width) ** 2)
        s.line([(50 + x, cy - reach), (50 + x, cy + reach)], strings, 0.35)
        y = step * height / 7
        reach = width * math.sqrt(1 - (y / height) ** 2)
        s.line([(50 - reach, cy + y), (50 + reach, cy + y)], strings, 0.35)
    neck = cy + height
    for side in (1, -1):
        s.line([(50 + side * width * 0.55, cy + height * 0.83), (50 + side * 1.2, neck + 12)], s.main, thick)
    s.line([*hoop, hoop[1]], s.main, thick)
    for start, stop in ((200, 250), (290, 340), (60, 120)):
        s.line(ellipse(50, cy, width, height, start, stop), s.second, thick * 0.6)
    s.fill(box(47.2, neck + 9, 52.8, 96, 1.4), s.choose(3, ((40, 40, 42), (240, 238, 232), s.second)), shade=0.5)
    for step in range(5):
        y = neck + 14 + step * (80 - neck) / 4
        s.line([(47.2, y + 2), (52.8, y)], (120, 118, 116), 0.5)
    s.fill(box(46.4, 93, 53.6, 97, 1.2), mix(s.main, (20, 20, 20), 0.4))
    if s.choose(4, (True, False)):
        face(s, 50, cy, 6, s.second, s.main)


DRAWINGS = {
    "card": _card,
    "poster": _poster,
    "book": _book,
    "guitar": _guitar,
    "ball": _ball,
    "racket": _racket,
}
