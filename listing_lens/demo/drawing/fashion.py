"""Clothes, shoes and what is worn with them."""

from __future__ import annotations

from listing_lens.demo.drawing.emblems import emblem
from listing_lens.demo.drawing.geometry import Outline, box, ellipse, mirror, rotate, shift, symmetric, trace
from listing_lens.demo.drawing.sketch import Sketch
from listing_lens.demo.palette import RGB, darker, lighter, mix

_INSIDE = 0.55


def _t_shirt(s: Sketch) -> None:
    half, hem = s.vary(0, 20, 25), s.vary(1, 76, 90)
    neck, depth, sleeve = s.vary(2, 6.5, 10), s.vary(3, 5, 13), s.vary(4, 9, 15)
    edge = 50 + half
    body = symmetric(
        trace(
            [
                (50, 14 + depth),
                (50 + neck * 0.9, 14 + depth, 50 + neck, 13),
                (edge - 2, 17),
                (edge + sleeve, 22 + sleeve * 1.1),
                (edge + sleeve - 8, 28 + sleeve * 1.1),
                (edge - 1, 36),
                (edge - 2, 60, edge, hem),
                (50, hem + 2, 50, hem + 1.5),
            ]
        )
    )
    s.fill(_back_of_neck(neck), darker(s.main, _INSIDE), shade=0)
    s.fill(body, s.cloth)
    ringer = s.choose(5, (s.main, s.main, s.second))
    for points in (body[1:15], mirror(body[1:15])):
        s.line(points, darker(ringer, 0.12), 2)
    for side in (1, -1):
        s.line([(50 + side * (edge - 52), 17), (50 + side * (edge - 51), 27), (50 + side * (edge - 51), 36)],
               darker(s.main, 0.35), 0.35)  # fmt: skip
        cuff = [
            (50 + side * (x - 50), y)
            for x, y in [(edge + sleeve - 1, 22 + sleeve * 1.1 - 1.6), (edge + sleeve - 9, 26.4 + sleeve * 1.1)]
        ]
        s.line(cuff, darker(ringer, 0.15), 0.9)
    _folds(s, edge, hem)
    emblem(s, 50, 42, s.vary(6, 7, 12), s.ink, s.accent if s.ink == s.second else s.second)


def _back_of_neck(neck: float) -> Outline:
    return ellipse(50, 14, neck, 3)


def _folds(s: Sketch, edge: float, hem: float) -> None:
    for x, y, length in ((edge - 8, 40, 20), (100 - edge + 6, 44, 24), (44, hem - 18, 15), (58, hem - 24, 19)):
        s.crease(trace([(x, y), (x - 2, y + length / 2, x + 1, y + length)]))


def _hoodie(s: Sketch) -> None:
    half, hem = s.vary(0, 21, 25), s.vary(1, 80, 88)
    edge = 50 + half
    wrist = s.vary(2, 70, 80)
    sleeve = trace([(edge - 4, 22), (edge + 6, 27, edge + 10, wrist), (edge + 3, wrist + 1.5), (edge - 1, 44)])
    body = symmetric(
        trace([(50, 20), (60, 17), (edge - 4, 21), (edge - 1, 30, edge - 1, 45), (edge, hem), (50, hem + 1)])
    )
    for points in (sleeve, mirror(sleeve)):
        s.fill(points, s.cloth)
    for side in (1, -1):
        cuff = box(50 + edge - 50 + 2.4, wrist - 1, edge + 10.6, wrist + 5, 1.4)
        s.fill(cuff if side == 1 else mirror(cuff), darker(s.main, 0.12))
    s.fill(body, s.cloth)
    s.fill(box(100 - edge, hem - 3, edge, hem + 4, 1.2), darker(s.main, 0.12))
    hood = symmetric(trace([(50, 5), (62, 5, 68, 12, 66, 22), (62, 28, 50, 31)]))
    s.fill(hood, s.main, shade=0.5)
    s.fill(
        symmetric(trace([(50, 10), (58, 10, 61, 15, 58, 22), (55, 26, 50, 27)])),
        darker(s.choose(5, (s.main, s.second)), _INSIDE),
    )
    for side in (1, -1):
        s.line(
            [(50 + side * 5, 26), (50 + side * 5.5, 32), (50 + side * 5, 30 + s.vary(3, 6, 12))],
            lighter(s.main, 0.6),
            0.9,
        )
    pocket = symmetric([(50, hem - 24), (61, hem - 24), (67, hem - 12), (66, hem - 4), (50, hem - 4)])
    s.fill(pocket, s.main, shade=0.2)
    if s.choose(4, ("pullover", "zip")) == "zip":
        s.line([(50, 28), (50, hem + 3)], (196, 196, 200), 1)
        s.line([(50.4, 28), (50.4, hem + 3)], darker(s.main, 0.6), 0.35)
    _folds(s, edge, hem - 6)
    if s.choose(4, ("pullover", "zip")) == "pullover":
        emblem(s, 50, 45, s.vary(6, 7, 10), s.ink, s.second if s.ink == s.accent else s.accent)


def _shirt(s: Sketch) -> None:
    half, hem = s.vary(0, 20, 24), s.vary(1, 80, 90)
    edge, wrist = 50 + half, s.vary(2, 66, 78)
    sleeve = trace([(edge - 4, 19), (edge + 5, 24, edge + 9, wrist), (edge + 2.5, wrist + 1), (edge - 1, 40)])
    for points in (sleeve, mirror(sleeve)):
        s.fill(points, s.cloth)
    cuff = box(edge + 2, wrist - 2, edge + 9.6, wrist + 5, 1)
    for points in (cuff, mirror(cuff)):
        s.fill(points, s.main)
    body = symmetric(
        trace(
            [
                (50, 19),
                (57, 14),
                (edge - 4, 19),
                (edge - 1, 28, edge - 1, 40),
                (edge - 1, hem - 8),
                (edge - 1, hem, 58, hem),
                (50, hem + 2),
            ]
        )
    )
    s.fill(ellipse(50, 14, 8, 3.4), darker(s.main, _INSIDE), shade=0)
    s.fill(body, s.cloth)
    for side in (1, -1):
        collar = [(50, 22), (50 + side * 8, 11), (50 + side * 13, 16), (50 + side * 7.5, 27)]
        s.fill(collar, lighter(s.main, 0.1) if s.choose(3, (True, False)) else s.second)
    s.tint(box(47.4, 23, 52.6, hem + 1), (10, 10, 20), 0.08)
    s.line([(47.4, 24), (47.4, hem + 1)], darker(s.main, 0.4), 0.35)
    for step in range(7):
        s.fill(ellipse(50, 29 + step * (hem - 34) / 6.5, 1.1), lighter(s.ink, 0.4), edge=0.25)
    if s.choose(4, (True, True, False)):
        s.fill([(56, 38), (67, 38), (67, 48), (61.5, 51), (56, 48)], s.cloth, shade=0.15, edge=0.4)
    _folds(s, edge, hem)
    emblem(s, 61, 44, 3, s.ink, s.accent)


def _jacket(s: Sketch) -> None:
    half, hem = s.vary(0, 22, 26), s.vary(1, 76, 86)
    edge, wrist = 50 + half, s.vary(2, 68, 76)
    arm = s.choose(3, (s.main, s.second, s.cloth))
    sleeve = trace([(edge - 5, 17), (edge + 8, 22, edge + 10, wrist), (edge + 2, wrist + 1), (edge - 1, 42)])
    band = darker(s.accent if s.choose(3, (False, True, False)) else s.main, 0.25)
    for points in (sleeve, mirror(sleeve)):
        s.fill(points, arm, shade=0.5)
    cuff = box(edge + 1.4, wrist - 1, edge + 10.6, wrist + 5.5, 1.6)
    for points in (cuff, mirror(cuff)):
        s.fill(points, band)
    body = symmetric(trace([(50, 15), (58, 13), (edge - 5, 17), (edge, 26, edge - 1, 44), (edge, hem), (50, hem)]))
    s.fill(body, s.cloth, shade=0.5)
    s.fill(box(100 - edge, hem - 2, edge, hem + 5, 1.5), band)
    for step in range(24):
        x = 100 - edge + 1 + step * (2 * half - 2) / 23
        s.line([(x, hem - 1), (x, hem + 4)], darker(band, 0.35), 0.3)
    s.fill(symmetric(trace([(50, 10), (58, 8, 61, 12), (60, 19, 50, 19)])), band)
    s.line([(50, 11), (50, hem + 4)], (188, 188, 192), 1.4)
    s.stitches([(50, 12 + step) for step in range(int(hem - 10))], (90, 90, 96), 1.4)
    for side in (1, -1):
        s.line([(50 + side * (half - 6), hem - 26), (50 + side * (half - 11), hem - 12)], darker(s.main, 0.55), 1.1)
    if s.choose(4, ("plain", "puffer")) == "puffer":
        for y in range(28, int(hem - 3), 9):
            s.crease(trace([(100 - edge + 1, y), (38, y + 2.5, 49, y)]), 0.35)
            s.crease(trace([(51, y), (62, y + 2.5, edge - 1, y)]), 0.35)
    emblem(s, 50 + half * 0.52, 34, 4.6, s.ink, s.accent)


def _dress(s: Sketch) -> None:
    waist, flare, hem = s.vary(0, 11, 15), s.vary(1, 22, 38), s.vary(2, 80, 94)
    neck = s.vary(3, 6, 11)
    strap = s.choose(4, (3.5, 7, 9))
    bodice = symmetric(
        trace(
            [
                (50, 12 + neck * 1.2),
                (50 + neck, 12 + neck, 50 + neck, 7),
                (50 + neck + strap, 8),
                (50 + neck + strap - 2, 20, 66, 26),
                (64, 36, 50 + waist, 44),
                (50, 45),
            ]
        )
    )
    skirt = symmetric(
        trace(
            [
                (50, 43),
                (50 + waist, 43),
                (50 + waist + 4, 60, 50 + flare, hem),
                (50 + flare * 0.5, hem + 5, 50, hem + 4),
            ]
        )
    )
    s.fill(skirt, s.cloth, shade=0.4)
    for share in (-0.7, -0.35, 0.05, 0.4, 0.72):
        s.crease(
            trace([(50 + waist * share, 47), (50 + waist * share * 1.3, 64, 50 + flare * share, hem + 2)]), 0.2, 1.4
        )
    s.fill(bodice, s.cloth)
    for sign in (-1, 1):
        if s.choose(5, ("sleeveless", "puff")) == "puff":
            s.fill(ellipse(50 + sign * (neck + strap + 4), 17, 8, 8), s.cloth, shade=0.5)
    s.fill(
        box(50 - waist - 0.6, 41, 50 + waist + 0.6, 45.5, 1),
        s.ink if s.choose(6, (True, False)) else darker(s.main, 0.2),
    )
    if s.choose(6, (True, False)):
        for sign in (-1, 1):
            bow = [(50, 43.4), (50 + sign * 7, 39), (50 + sign * 7, 48)]
            s.fill(bow, s.ink)
    if s.choose(4, (False, True, True)):
        s.line(skirt[16:30], lighter(s.second, 0.1), 1.6)
        s.line(mirror(skirt[16:30]), lighter(s.second, 0.1), 1.6)


def _skirt(s: Sketch) -> None:
    waist, flare, hem = s.vary(0, 15, 20), s.vary(1, 24, 42), s.vary(2, 66, 88)
    outline = symmetric(
        trace(
            [
                (50, 20),
                (50 + waist, 20),
                (50 + waist + 5, 42, 50 + flare, hem),
                (50 + flare * 0.5, hem + 6, 50, hem + 5),
            ]
        )
    )
    s.fill(outline, s.cloth, shade=0.4)
    pleats = s.choose(3, (4, 8, 12))
    for step in range(pleats):
        share = -0.85 + 1.7 * step / (pleats - 1)
        s.crease(
            trace([(50 + waist * share, 26), (50 + waist * share * 1.2, 45, 50 + flare * share, hem + 4)]), 0.26, 1.3
        )
    s.fill(
        box(50 - waist - 0.6, 17, 50 + waist + 0.6, 24, 1.2),
        darker(s.main, 0.2) if s.choose(4, (True, False)) else s.ink,
    )
    if s.choose(5, (True, False)):
        for step in range(5):
            s.fill(ellipse(50, 29 + step * (hem - 32) / 5, 1.5), lighter(s.accent, 0.2), edge=0.3)


def _jeans(s: Sketch) -> None:
    waist, leg, length = s.vary(0, 16, 20), s.vary(1, 8, 16), s.vary(2, 84, 95)
    cloth = mix(s.main, s.choose(3, ((44, 70, 120), (30, 34, 58), (120, 150, 190), s.main)), 0.7)
    paint = s.cloth if s.product.pattern else cloth
    thread = (214, 160, 84)
    outline = symmetric(
        trace(
            [
                (50, 8),
                (50 + waist, 8),
                (50 + waist + 6, 26, 50 + waist + 3, 46),
                (58 + leg, length),
                (58 - leg * 0.3, length),
                (51.5, 44),
                (50, 38),
            ]
        )
    )
    s.fill(outline, paint, shade=0.4)
    for side in (1, -1):
        s.tint(ellipse(50 + side * (waist * 0.62), 48, 4, 17), (236, 240, 250), s.vary(4, 0.05, 0.3), clip=outline)
        s.stitches([(50 + side * (waist + 4 - y / 30), y) for y in range(20, int(length) - 2)], thread, 0.4)
        s.line(
            trace([(50 + side * (waist - 1), 23), (50 + side * (waist - 9), 22, 50 + side * (waist - 9), 13)]),
            thread,
            0.5,
        )
        cuff = [
            (50 + side * 7.3, length - 5),
            (50 + side * (8.6 + leg), length - 5),
            (50 + side * (8.6 + leg), length + 0.6),
            (50 + side * (7.6 - leg * 0.3), length + 0.6),
        ]
        if s.choose(5, (True, False)):
            s.fill(cuff, lighter(cloth, 0.45))
        s.crease([(50 + side * 5, 40), (50 + side * (waist - 2), 44)], 0.25)
        s.crease([(50 + side * 7, 62), (50 + side * (leg + 6), 64)], 0.18)
    s.fill(box(50 - waist - 0.5, 6, 50 + waist + 0.5, 12.5, 0.8), darker(cloth, 0.15))
    s.line(trace([(50.5, 12), (50.5, 30), (52, 36, 46, 38)]), thread, 0.5)
    for x in (-0.7, 0.7):
        s.fill(box(50 + waist * x - 1, 5.2, 50 + waist * x + 1, 13.4, 0.3), cloth, shade=0, edge=0.3)
    s.fill(ellipse(50, 9.3, 1.5), (196, 150, 90))
    emblem(s, 50 + waist * 0.62, 55, 4, s.ink, s.accent)


def _sneakers(s: Sketch) -> None:
    collar = s.vary(0, 24, 44)
    sole = s.vary(1, 5, 11)
    toe = s.vary(2, 0, 5)
    base = 76 - sole
    upper = trace(
        [
            (8, base),
            (5, 55, 8, collar + 4),
            (10, collar - 1, 15, collar),
            (22, collar + 5, 34, collar + 1),
            (40, collar + 12, 62, 54),
            (84, 56 - toe, 93, 66 - toe, 94, base),
        ]
    )
    s.fill(upper, s.cloth, shade=0.45)
    cap = trace([(74, base + 1), (74, 60, 80, 54 - toe * 0.2), (92, 58 - toe, 95, 68 - toe, 94, base + 1)])
    s.fill(cap, s.choose(3, (lighter(s.main, 0.85), s.second, s.main)), clip=upper)
    s.line(cap[1:15], darker(s.main, 0.4), 0.5)
    s.fill(
        trace([(6, base), (4, 58, 8, collar + 14), (18, collar + 16, 19, base)]),
        s.choose(4, (s.second, s.main, s.accent)),
        clip=upper,
    )
    s.fill(
        trace([(14, collar - 0.5), (22, collar + 4, 33, collar + 1), (24, collar - 6, 14, collar - 0.5)]),
        darker(s.main, 0.5),
        shade=0,
    )
    tongue = trace(
        [(30, collar + 3), (29, collar - 6, 36, collar - 7), (42, collar - 2, 45, collar + 8), (38, collar + 12)]
    )
    s.fill(tongue, lighter(s.main, 0.2))
    lace = lighter(s.accent, 0.7)
    for step in range(5):
        x, y = 38 + step * 6, collar + 6 + step * (50 - collar) / 5.5
        s.line([(x - 3.4, y + 6), (x + 4, y)], lace, 1.9)
    ink = s.ink
    style = s.choose(5, ("swoosh", "stripes", "patch", "plain"))
    if style == "swoosh":
        s.fill(trace([(24, 52), (30, 66, 46, 64, 70, 54), (46, 76, 20, 78, 24, 52)]), ink, shade=0.1, clip=upper)
    elif style == "stripes":
        for x in (38, 46, 54):
            s.fill([(x - 2, 53), (x + 2, 52), (x - 6, base), (x - 11, base)], ink, shade=0, clip=upper)
    elif style == "patch":
        s.fill(ellipse(28, 58, 7), lighter(s.main, 0.8))
        emblem(s, 28, 58, 4, darker(ink, 0.2), s.accent)
    s.fill(
        trace(
            [(6, base - 1), (94, base - 1), (98, base + 2, 96, 75), (92, 78, 84, 77), (10, 77), (4, 76, 6, base - 1)]
        ),
        s.choose(6, ((244, 242, 236), (244, 242, 236), (60, 58, 60), s.second)),
    )
    s.line(
        [(7, base + sole * 0.55), (95, base + sole * 0.55)],
        s.choose(6, ((196, 60, 60), (200, 198, 190), (100, 98, 100), darker(s.second, 0.3))),
        0.8,
    )


def _boots(s: Sketch) -> None:
    top, heel = s.vary(0, 8, 34), s.vary(1, 2, 9)
    shaft = s.vary(2, 15, 20)
    left, right = 24, 24 + shaft * 1.7
    upper = trace(
        [
            (left, top),
            (left + 2, 45, left - 2, 68),
            (left - 3, 76, left - 2, 80),
            (84, 80),
            (87, 68, 76, 63),
            (62, 60, right - 1, 50),
            (right - 2, 30, right, top),
        ]
    )
    s.fill(upper, s.main, shade=0.6)
    s.tint(trace([(60, 62), (72, 64, 79, 70), (70, 68, 60, 66)]), (255, 255, 255), 0.3)
    if s.choose(3, ("laces", "plain", "zip")) == "laces":
        for step in range(5):
            y = 30 + step * 6.4
            s.line(
                [(right - 11, y + 2), (right + 0.6 + step * 0.4, y)], s.choose(4, (s.accent, lighter(s.main, 0.6))), 1.3
            )
    elif s.choose(3, ("laces", "plain", "zip")) == "zip":
        s.line([(left + 8, top + 4), (left + 9, 72)], (206, 196, 160), 0.9)
    else:
        s.fill([(left - 1, 62), (left + 1, 56), (right + 1, 56), (58, 63), (57, 66)], darker(s.main, 0.25))
        s.fill(box(36, 57, 43, 65, 1), (206, 176, 100))
    for y in (46, 52, 58):
        s.crease(trace([(left + 1, y), (38, y + 3, right - 4, y)]), 0.2)
    s.fill(
        [(left - 2, top + 1), (left, top - 3), (right + 1, top - 3), (right + 1, top + 3), (left, top + 3)],
        s.choose(5, (darker(s.main, 0.3), (236, 226, 208), s.main)),
    )
    s.fill(
        trace(
            [
                (left - 4, 79),
                (86, 79),
                (89, 82, 86, 85),
                (48, 85),
                (45, 85 + heel),
                (left - 3, 85 + heel),
                (left - 4, 79),
            ]
        ),
        darker(s.choose(6, (s.main, (60, 44, 32), (40, 40, 40))), 0.4),
    )


def _heels(s: Sketch) -> None:
    height = s.vary(0, 22, 40)
    heel_width = s.vary(1, 0.6, 4)
    back = 74 - height
    sole = trace([(12, back + 12), (26, back + 14, 40, 62, 62, 72), (80, 78, 93, 77)])
    upper = trace(
        [
            (11, back + 13),
            (7, back + 2, 10, back - 6),
            (14, back - 5, 16, back),
            (22, back + 14, 44, 66, 58, 60),
            (66, 56, 72, 62),
            (90, 68, 95, 75),
            (80, 80, 62, 73),
            (40, 64, 26, back + 16, 11, back + 13),
        ]
    )
    s.fill(
        trace([(16, back + 2), (30, back + 8, 50, 52, 64, 60), (54, 64, 30, back + 20, 16, back + 2)]),
        (222, 196, 164),
        shade=0.1,
    )
    s.fill(upper, s.cloth, shade=0.55)
    s.tint(trace([(72, 65), (82, 67, 88, 72), (80, 70, 72, 68)]), (255, 255, 255), 0.45)
    s.fill(
        [(10, back + 12), (22, back + 16), (16 + heel_width, 84), (14 - heel_width * 0.4, 84)],
        s.choose(2, (s.main, s.second, (40, 36, 36))),
    )
    s.line(sole, darker(s.choose(3, (s.main, (190, 40, 44))), 0.3), 1.4)
    decoration = s.choose(4, ("none", "strap", "bow", "stone"))
    if decoration == "strap":
        s.line(
            trace([(11, back - 3), (26, back - 14, 36, back + 2), (34, back + 10, 30, back + 12)]),
            darker(s.main, 0.15),
            1.9,
        )
    elif decoration == "bow":
        for side in (-1, 1):
            s.fill([(68, 60), (68 + side * 8, 55), (68 + side * 8, 65)], s.ink)
        s.fill(ellipse(68, 60, 1.8), darker(s.ink, 0.2))
    elif decoration == "stone":
        s.fill(box(65, 57, 74, 64, 1.2), (214, 190, 120))
        s.fill(box(67, 59, 72, 62.4, 0.8), s.accent)


def _cap(s: Sketch) -> None:
    height = s.vary(0, 18, 32)
    brim = s.vary(1, 24, 40)
    dome = trace([(18, 60), (17, height, 45, height - 4), (74, height - 2, 76, 58), (48, 64, 18, 60)])
    s.fill(dome, s.cloth, shade=0.5)
    front = trace([(40, 61), (42, height + 10, 46, height - 3), (74, height - 2, 76, 58), (60, 62, 40, 61)])
    panel = s.choose(2, (s.main, s.main, s.second, lighter(s.main, 0.75)))
    if s.product.pattern is None:
        s.fill(front, panel, shade=0.25)
    s.line(trace([(31, 61), (32, 36, 46, height - 3)]), darker(s.main, 0.4), 0.45)
    s.line(trace([(58, 62), (60, 36, 46, height - 3)]), darker(panel, 0.4), 0.45)
    s.fill(ellipse(46, height - 3, 2.6, 1.5), s.choose(3, (s.main, s.accent)))
    bill = trace([(36, 60), (54, 56, 76, 56), (70 + brim, 58, 68 + brim, 71), (74, 66, 52, 67), (42, 66, 36, 60)])
    s.fill(bill, s.choose(4, (s.main, s.second, s.accent)), shade=0.45)
    s.line(trace([(42, 63), (64, 58, 66 + brim, 67)]), darker(s.main, 0.3), 0.35)
    colour = max((s.second, s.accent, s.main), key=lambda c: abs(sum(c) - sum(panel)))
    emblem(s, 57, height + 19, 7, colour, s.accent)


def _watch(s: Sketch) -> None:
    radius = s.vary(0, 17, 23)
    metal = s.choose(1, ((206, 208, 212), (222, 184, 110), (70, 70, 76), (214, 160, 140)))
    strap_width = radius * s.vary(2, 0.5, 0.68)
    link = s.choose(3, ("leather", "metal", "nylon"))
    strap = metal if link == "metal" else s.main
    for top, bottom in ((3, 50 - radius * 0.8), (50 + radius * 0.8, 97)):
        s.fill(box(50 - strap_width, top, 50 + strap_width, bottom, 3), strap, shade=0.5)
        if link == "metal":
            for y in range(int(top) + 4, int(bottom), 4):
                s.line([(50 - strap_width, y), (50 + strap_width, y)], darker(metal, 0.5), 0.5)
            for x in (-0.35, 0.35):
                s.line([(50 + strap_width * x, top), (50 + strap_width * x, bottom)], darker(metal, 0.4), 0.5)
        elif link == "leather":
            for x in (-0.78, 0.78):
                s.stitches(
                    [(50 + strap_width * x, top + 2 + step * 1.2) for step in range(int((bottom - top - 3) / 1.2))],
                    lighter(s.main, 0.5),
                    0.45,
                )
        else:
            s.fill(box(50 - strap_width * 0.3, top, 50 + strap_width * 0.3, bottom), s.second, shade=0.2, edge=0)
    square = s.choose(4, (False, False, True))

    def disc(share: float) -> Outline:
        r = radius * share
        return box(50 - r * 0.92, 50 - r, 50 + r * 0.92, 50 + r, r * 0.3) if square else ellipse(50, 50, r)

    s.fill(box(50 + radius * 0.85, 47.5, 50 + radius + 4, 52.5, 1), darker(metal, 0.1))
    s.fill(disc(1.06), metal, shade=0.7)
    dial = s.choose(5, ((246, 244, 238), (28, 30, 38), s.second, s.accent))
    s.fill(disc(0.84), dial, shade=0.12)
    marks: RGB = (240, 240, 240) if sum(dial) < 380 else (30, 30, 40)
    for hour in range(12):
        mark = box(49.5 if hour % 3 else 49, 50 - radius * 0.76, 50.5 if hour % 3 else 51, 50 - radius * 0.64)
        s.fill(rotate(mark, hour * 30, (50, 50)), marks, shade=0, edge=0)
    for length, angle, width in (
        (0.42, s.vary(6, 0, 360), 1.6),
        (0.62, s.vary(7, 0, 360), 1.1),
        (0.68, s.vary(2, 0, 360), 0.5),
    ):
        tip = rotate([(50, 50 - radius * length)], angle, (50, 50))[0]
        s.line([(50, 50), tip], marks if width > 0.6 else (210, 60, 50), width)
    s.fill(ellipse(50, 50, 1.4), metal)
    s.tint(
        [
            (50 - radius * 0.55, 50 - radius * 0.3),
            (50 - radius * 0.1, 50 - radius * 0.75),
            (50 + radius * 0.1, 50 - radius * 0.7),
            (50 - radius * 0.45, 50 - radius * 0.1),
        ],
        (255, 255, 255),
        0.25,
    )


def _sunglasses(s: Sketch) -> None:
    style = s.choose(0, ("round", "square", "aviator", "cat"))
    width, height = s.vary(1, 15, 19), s.vary(2, 11, 16)
    frame = s.choose(3, (s.main, s.main, (40, 38, 38), (206, 176, 110)))
    lens = s.choose(4, (darker(s.second, 0.6), (50, 46, 44), mix(s.accent, (40, 40, 60), 0.35)))
    cx = 50 + width + 4
    if style == "round":
        rim = ellipse(cx, 50, (width + height) / 2)
    elif style == "square":
        rim = box(cx - width, 50 - height, cx + width, 50 + height, 4)
    elif style == "aviator":
        rim = trace(
            [
                (cx - width, 50 - height * 0.9),
                (cx, 50 - height * 1.1, cx + width, 50 - height * 0.8),
                (cx + width * 1.1, 50 + height, cx, 50 + height * 1.1),
                (cx - width, 50 + height, cx - width, 50 - height * 0.9),
            ]
        )
    else:
        rim = trace(
            [
                (cx - width, 50 - height * 0.5),
                (cx, 50 - height * 0.9, cx + width * 1.25, 50 - height * 1.3),
                (cx + width * 1.1, 50 + height, cx, 50 + height),
                (cx - width, 50 + height, cx - width, 50 - height * 0.5),
            ]
        )
    for side in (1, -1):
        temple = [
            (50 + side * (width * 2 + 3), 44),
            (50 + side * 47, 30),
            (50 + side * 48, 33),
            (50 + side * (width * 2 + 4), 49),
        ]
        s.fill(temple, darker(frame, 0.2))
    for points in (rim, mirror(rim)):
        s.fill(points, lens, shade=0.3, edge=0)
        s.line([*points, points[0], points[1]], frame, s.vary(5, 1.4, 4))
        s.line([*points, points[0]], darker(frame, 0.45), 0.4)
    s.line(trace([(50 - 4.6, 46), (50, 41, 50 + 4.6, 46)]), frame, 2.6)
    for x in (50 - width - 4, cx):
        s.tint(
            [
                (x - width * 0.5, 50 - height * 0.1),
                (x - width * 0.1, 50 - height * 0.6),
                (x + width * 0.15, 50 - height * 0.6),
                (x - width * 0.4, 50 + height * 0.25),
            ],
            (255, 255, 255),
            0.4,
        )


def _umbrella(s: Sketch) -> None:
    top, rim, half = s.vary(0, 12, 22), s.vary(1, 50, 58), s.vary(2, 38, 46)
    handle = s.choose(3, ((120, 78, 46), (40, 38, 40), s.accent))
    s.line([(50, top - 6), (50, 84)], (150, 150, 156), 1.5)
    s.line(trace([(50, 82), (50, 95), (50, 100, 44, 97), (41, 95, 41, 91)]), handle, 3.4)
    dome = trace([(50 - half, rim), (50 - half * 0.9, top, 50, top), (50 + half * 0.9, top, 50 + half, rim)])
    scallops = 5
    for step in range(scallops):
        right = 50 + half - 2 * half * step / scallops
        left = 50 + half - 2 * half * (step + 1) / scallops
        dome += trace([(right, rim), ((left + right) / 2, rim - 8, left, rim)])[1:]
    s.fill(dome, s.cloth, shade=0.5)
    for step in range(1, scallops):
        x = 50 - half + 2 * half * step / scallops
        s.crease(trace([(50, top), ((50 + x) / 2 + (x - 50) * 0.3, top + 12, x, rim)]), 0.4, 0.6)
    if s.product.pattern is None and s.choose(4, (True, False)):
        wedge = trace(
            [
                (50, top),
                (50 - half * 0.12, top + 16, 50 - half / 5, rim),
                (50, rim - 8, 50 + half / 5, rim),
                (50 + half * 0.12, top + 16, 50, top),
            ]
        )
        s.fill(wedge, s.second, shade=0.1)
    s.fill(box(49, top - 7, 51, top + 1, 0.8), handle)
    if s.choose(5, (True, False, False)):
        s.line(shift(trace([(50 - half, rim), (50 - half * 0.9, top, 50, top)])[:3], 0, 0), s.accent, 1)


DRAWINGS = {
    "t-shirt": _t_shirt,
    "hoodie": _hoodie,
    "shirt": _shirt,
    "jacket": _jacket,
    "dress": _dress,
    "skirt": _skirt,
    "jeans": _jeans,
    "sneakers": _sneakers,
    "boots": _boots,
    "heels": _heels,
    "cap": _cap,
    "watch": _watch,
    "sunglasses": _sunglasses,
    "umbrella": _umbrella,
}
