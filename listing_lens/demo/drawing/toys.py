"""Toys."""

from __future__ import annotations

from listing_lens.demo.drawing.emblems import emblem
from listing_lens.demo.drawing.geometry import Outline, box, ellipse, rotate, trace
from listing_lens.demo.drawing.sketch import Paint, Sketch
from listing_lens.demo.palette import RGB, darker, lighter, luminance, mix


def _bear(s: Sketch) -> None:
    fur, muzzle = (
        s.cloth,
        lighter(s.main, 0.55) if luminance(s.main) < 190 else s.choose(0, (s.second, (214, 186, 150))),
    )
    head, ear = s.vary(1, 20, 25), s.vary(2, 7, 10)
    belly = s.vary(3, 20, 26)
    top = 32
    _plush_body(s, fur, belly, pads=muzzle)
    for side in (1, -1):
        s.fill(ellipse(50 + side * head * 0.8, top - head * 0.72, ear), fur, shade=0.5)
        s.fill(ellipse(50 + side * head * 0.8, top - head * 0.68, ear * 0.55), muzzle, shade=0.2, edge=0)
    s.fill(ellipse(50, top, head, head * 0.9), fur, shade=0.55)
    s.fill(ellipse(50, top + head * 0.36, head * 0.42, head * 0.32), muzzle, shade=0.3, edge=0.25)
    s.fill(ellipse(50, top + head * 0.22, head * 0.15, head * 0.1), (46, 34, 32), edge=0)
    s.line(trace([(50 - 4, top + head * 0.5), (50, top + head * 0.62, 50 + 4, top + head * 0.5)]), (60, 44, 40), 0.7)
    _eyes(s, top - head * 0.05, head * 0.42, head * 0.1)
    _neckwear(s, top + head * 0.9)


def _rabbit(s: Sketch) -> None:
    fur, inside = s.cloth, mix(lighter(s.main, 0.6), (244, 170, 184), 0.5)
    head, reach = s.vary(1, 16, 20), s.vary(2, 20, 30)
    top = 44
    _plush_body(s, fur, s.vary(3, 17, 22), pads=inside)
    floppy = s.choose(4, (8, 14, 40, 100))
    for side in (1, -1):
        bend = floppy if side == 1 else s.choose(5, (floppy, 10))
        root = (50 + side * head * 0.5, top - head * 0.6)
        for width, paint, edge in ((6.4, fur, 0.5), (3.4, inside, 0)):
            ear = ellipse(root[0], root[1] - reach * 0.62, width, reach * 0.72 if edge else reach * 0.55)
            s.fill(rotate(ear, side * bend, root), paint, shade=0.4, edge=edge)
    s.fill(ellipse(50, top, head, head * 0.88), fur, shade=0.55)
    _eyes(s, top - 1, head * 0.45, head * 0.12)
    for side in (1, -1):
        s.tint(ellipse(50 + side * head * 0.62, top + head * 0.3, head * 0.18, head * 0.12), (240, 130, 150), 0.5)
    s.fill([(48, top + head * 0.2), (52, top + head * 0.2), (50, top + head * 0.36)], (220, 110, 130), edge=0)
    s.line([(50, top + head * 0.36), (50, top + head * 0.5)], (90, 60, 60), 0.6)
    _neckwear(s, top + head * 0.9)


def _plush_body(s: Sketch, fur: Paint, belly: float, pads: RGB) -> None:
    for side in (1, -1):
        s.fill(rotate(ellipse(50 + side * (belly + 2), 64, 7, 15), -side * 28, (50 + side * belly, 56)), fur, shade=0.5)
        s.fill(ellipse(50 + side * (belly * 0.85), 87, 11, 9), fur, shade=0.5)
        s.fill(ellipse(50 + side * (belly * 0.9), 88, 6, 5.4), pads, shade=0.2, edge=0)
    s.fill(ellipse(50, 70, belly, 22), fur, shade=0.55)
    if s.choose(6, (True, True, False)):
        s.fill(ellipse(50, 73, belly * 0.6, 14), pads, shade=0.25, edge=0)


def _eyes(s: Sketch, y: float, apart: float, radius: float) -> None:
    for side in (1, -1):
        s.fill(ellipse(50 + side * apart, y, radius, radius * 1.15), (34, 28, 30), edge=0)
        s.fill(
            ellipse(50 + side * apart - radius * 0.35, y - radius * 0.4, radius * 0.35),
            (255, 255, 255),
            shade=0,
            edge=0,
        )


def _neckwear(s: Sketch, y: float) -> None:
    style = s.choose(7, ("ribbon", "scarf", "none", "ribbon"))
    if style == "ribbon":
        for side in (1, -1):
            s.fill([(50, y), (50 + side * 11, y - 5.5), (50 + side * 11, y + 5.5)], s.accent, shade=0.4)
        s.fill(ellipse(50, y, 2.8), darker(s.accent, 0.15))
    elif style == "scarf":
        s.fill(box(36, y - 3.5, 64, y + 3, 3), s.second, shade=0.4)
        s.fill(box(55, y, 61.5, y + 17, 1.5), s.second, shade=0.4)
        for step in range(3):
            s.line([(55.6, y + 5 + step * 4), (61, y + 5 + step * 4)], s.accent, 1.1)


def _robot(s: Sketch) -> None:
    head_w, head_h = s.vary(0, 13, 19), s.vary(1, 9, 14)
    body_w, body_h = s.vary(2, 15, 22), s.vary(3, 15, 20)
    neck = 14 + head_h * 2
    body_top, body_bottom = neck + 2, neck + 2 + body_h * 2
    joint = s.choose(4, ((120, 124, 130), darker(s.main, 0.4)))
    radius = s.choose(5, (1, 4, 9))
    for side in (1, -1):
        x = 50 + side * (body_w + 6)
        s.fill(box(x - 4.2, body_top + 3, x + 4.2, body_bottom - 3, 3), s.second, shade=0.5)
        s.fill(ellipse(50 + side * (body_w + 2), body_top + 5, 4.6), joint, shade=0.5)
        s.fill(ellipse(x, body_bottom, 5.4), s.accent, shade=0.5)
        s.hole(box(x - 1.6, body_bottom + 1.4, x + 1.6, body_bottom + 7, 0.8))
        leg = 50 + side * body_w * 0.5
        s.fill(box(leg - 4.4, body_bottom - 2, leg + 4.4, 90, 1.5), joint, shade=0.5)
        s.fill(box(leg - 8, 86, leg + 8, 95, 3), s.second, shade=0.5)
    s.fill(box(45, neck - 3, 55, body_top + 3), joint, shade=0.4)
    s.fill(box(50 - body_w, body_top, 50 + body_w, body_bottom, radius), s.cloth, shade=0.5)
    panel = lighter(s.main, 0.55) if luminance(s.main) < 150 else darker(s.main, 0.55)
    s.fill(box(50 - body_w * 0.68, body_top + 5, 50 + body_w * 0.68, body_bottom - 8, 2), panel, shade=-0.15)
    if s.product.emblem is None:
        for step in range(3):
            s.fill(
                ellipse(50 + (step - 1) * body_w * 0.4, (body_top + body_bottom) / 2, 2.6),
                (s.accent, s.second, s.main)[step],
            )
    emblem(s, 50, (body_top + body_bottom) / 2 - 1, body_h * 0.4, s.accent, s.second)
    antenna = s.choose(6, ("one", "two", "horns"))
    for side in {"one": (0,), "two": (1, -1), "horns": (1, -1)}[antenna]:
        x = 50 + side * head_w * 0.6
        if antenna == "horns":
            s.fill([(x - 3, 15), (x + 3, 15), (x + side * 9, 3)], s.accent, shade=0.4)
        else:
            s.line([(x, 16), (x, 6)], joint, 1.4)
            s.fill(ellipse(x, 6, 2.8), s.accent)
    s.fill(box(50 - head_w, 14, 50 + head_w, 14 + head_h * 2, radius), s.main, shade=0.5)
    glow: RGB = s.choose(7, ((250, 230, 90), (120, 240, 250), (250, 110, 90), (160, 250, 140)))
    if s.choose(7, ("visor", "eyes", "eyes", "visor", "eyes")) == "visor":
        s.fill(box(50 - head_w * 0.75, 14 + head_h * 0.5, 50 + head_w * 0.75, 14 + head_h * 1.1, 2), glow)
    else:
        for side in (1, -1):
            s.fill(ellipse(50 + side * head_w * 0.45, 14 + head_h * 0.8, head_h * 0.34), (244, 244, 240))
            s.fill(ellipse(50 + side * head_w * 0.45, 14 + head_h * 0.8, head_h * 0.18), darker(glow, 0.5), edge=0)
    for step in range(5):
        x = 50 + (step - 2) * head_w * 0.22
        s.line([(x, 14 + head_h * 1.45), (x, 14 + head_h * 1.75)], darker(s.main, 0.6), 1)


def _toy_car(s: Sketch) -> None:
    style = s.choose(0, ("sedan", "sports", "bus", "truck"))
    wheel = s.vary(1, 8, 11)
    glass = s.choose(2, ((150, 200, 226), (70, 84, 100), (190, 222, 214)))
    base = 70
    if style == "sedan":
        roof = s.vary(3, 28, 36)
        body = trace(
            [
                (7, base),
                (7, 54, 12, 51),
                (24, 49),
                (34, roof, 38, roof),
                (62, roof),
                (68, roof + 1, 76, 49),
                (90, 51, 93, 56),
                (94, base),
            ]
        )
        windows: list[Outline] = [
            [(31, 49), (38, roof + 4), (49, roof + 4), (49, 49)],
            [(52, 49), (52, roof + 4), (62, roof + 4), (69, 49)],
        ]
    elif style == "sports":
        roof = s.vary(3, 38, 44)
        body = trace(
            [
                (5, base),
                (5, 58, 10, 56),
                (30, 53),
                (42, roof, 50, roof),
                (66, roof, 78, 54),
                (90, 54, 95, 60),
                (95, base),
            ]
        )
        windows = [
            trace([(36, 53), (44, roof + 4, 50, roof + 4), (56, roof + 3.5), (57, 53)]),
            trace([(60, 53), (59, roof + 4), (66, roof + 4, 72, 53)]),
        ]
    elif style == "bus":
        roof = s.vary(3, 22, 30)
        body = box(7, roof, 93, base, 6)
        windows = [box(12 + step * 16, roof + 7, 24 + step * 16, roof + 21, 1.5) for step in range(5)]
    else:
        roof = s.vary(3, 30, 38)
        body = trace([(62, base), (62, roof), (80, roof), (84, roof, 88, 50), (93, 52, 94, 58), (94, base)])
        windows = [[(68, 50), (68, roof + 5), (78, roof + 5), (83, 50)]]
        s.fill(box(6, s.vary(4, 24, 48), 60, base - 3, 1.5), s.second, shade=0.4)
        s.fill(box(6, base - 6, 66, base, 1), (70, 70, 74))
    s.fill(body, s.cloth, shade=0.5)
    if style in ("sedan", "sports", "bus") and s.product.pattern is None and s.choose(5, (True, False)):
        s.fill(box(0, 57, 100, 61.5), s.second, shade=0, clip=body)
    for window in windows:
        s.fill(window, glass, shade=0.2)
        s.tint([window[0], window[1], (window[1][0] + 3, window[1][1])], (255, 255, 255), 0.4)
    s.fill(ellipse(91, 60, 2.4, 3), (255, 238, 170))
    s.fill(box(6, 58, 9.4, 64, 1), (214, 50, 46))
    s.fill(box(4, base - 4, 97, base + 1.5, 2), darker(s.main, 0.5), shade=0.3)
    for x in (26, 76):
        s.fill(ellipse(x, base + 1, wheel), (38, 38, 42), shade=0.35)
        s.fill(ellipse(x, base + 1, wheel * 0.56), s.choose(6, ((206, 208, 212), s.accent, (230, 190, 80))), shade=0.4)
        s.fill(ellipse(x, base + 1, wheel * 0.2), (90, 90, 96))
    if style == "sports" and s.choose(7, (True, False)):
        s.fill([(6, 56), (4, 46), (16, 46), (12, 55)], darker(s.main, 0.2))
    emblem(
        s,
        52 if style != "truck" else 33,
        59 if style != "truck" else 55,
        5.4 if style != "truck" else 7,
        s.ink,
        s.accent,
    )


def _blocks(s: Sketch) -> None:
    colours = [s.main, s.second, s.accent, lighter(s.main, 0.4), darker(s.second, 0.2)]
    unit = s.vary(0, 8.5, 10.5)
    base, left = 88.0, 50 - unit * 4
    first, limit = 0, 8
    placed = 0
    for level in range(s.choose(1, (3, 4, 5))):
        # Each row rests on the one below.
        column = first
        while column < limit:
            width = min(2 + int(s.product.shape[(level + column) % 8] * 2.9), limit - column)
            _brick(s, left + column * unit, base - (level + 1) * unit * 1.1, width, unit, colours[placed % 5])
            placed += 1
            column += width
        first += s.choose((level + 2) % 8, (0, 1, 2))
        limit -= s.choose((level + 3) % 8, (0, 1, 2))


def _brick(s: Sketch, x: float, y: float, studs: int, unit: float, colour: RGB) -> None:
    for step in range(studs):
        centre = x + (step + 0.5) * unit
        s.fill(
            box(centre - unit * 0.28, y - unit * 0.22, centre + unit * 0.28, y + 1, 0.8),
            lighter(colour, 0.1),
            shade=0.4,
        )
    outline: Outline = box(x, y, x + studs * unit, y + unit * 1.1, 0.6)
    s.fill(outline, colour, shade=0.4)


DRAWINGS = {"bear": _bear, "rabbit": _rabbit, "robot": _robot, "toy-car": _toy_car, "blocks": _blocks}
