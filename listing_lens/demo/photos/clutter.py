"""What gets into photos besides the product."""

from __future__ import annotations

from functools import lru_cache

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from listing_lens.demo.chance import generator, pick
from listing_lens.demo.drawing.geometry import Outline, box, ellipse, rotate, trace
from listing_lens.demo.drawing.sketch import SIZE
from listing_lens.demo.palette import RGB, darker, lighter

_SKINS: tuple[RGB, ...] = ((242, 206, 178), (226, 182, 148), (196, 146, 110), (142, 98, 70))


@lru_cache(maxsize=1)
def hanger() -> Image.Image:
    """A hanger behind a garment, RGBA, as large as a drawing."""
    image = Image.new("RGBA", (SIZE * 2, SIZE * 2))
    pen = ImageDraw.Draw(image)
    unit = SIZE * 2 / 100
    hook = [(50, 13), *ellipse(50, 4.5, 3.4, start=90, stop=-120)]
    arms = trace([(22, 24), (40, 12, 50, 12), (60, 12, 78, 24)])
    for points, width in ((hook, 1.1), (arms, 2.6)):
        pen.line(
            [(x * unit, y * unit) for x, y in points], fill=(96, 92, 92, 255), width=round(width * unit), joint="curve"
        )
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)


@lru_cache(maxsize=64)
def price_tag(number: int) -> Image.Image:
    """A paper tag at the product's side, RGBA, as large as a drawing."""
    rng = generator(number, "tag")
    image = Image.new("RGBA", (SIZE, SIZE))
    pen = ImageDraw.Draw(image)
    unit = SIZE / 100
    x, y = float(rng.uniform(62, 74)), float(rng.uniform(56, 72))
    turn = float(rng.uniform(-25, 25))

    def pixels(outline: Outline) -> Outline:
        return [(a * unit, b * unit) for a, b in rotate(outline, turn, (x, y))]

    pen.line(pixels(trace([(x, y), (x - 4, y - 10, x - 10, y - 12)])), fill=(70, 60, 56, 255), width=2)
    pen.polygon(pixels(box(x - 1, y - 3, x + 17, y + 9, 1.5)), fill=(250, 247, 236, 255), outline=(150, 140, 120, 255))
    pen.polygon(pixels(ellipse(x + 1.4, y - 0.4, 1)), fill=(120, 110, 100, 255))
    price = f"{int(rng.integers(5, 99)) * 100:,} yen"
    pen.text(
        ((x + 8) * unit, (y + 3) * unit),
        price,
        font=ImageFont.load_default(3.6 * unit),
        fill=(190, 50, 44, 255),
        anchor="mm",
    )
    return image


def hand(scene: Image.Image, number: int) -> Image.Image:
    """Somebody's fingers reach in from an edge of the photo."""
    rng = generator(number, "hand")
    width, height = scene.size
    unit = min(width, height) / 100
    skin = pick(rng, _SKINS)
    layer = Image.new("RGBA", (round(46 * unit), round(46 * unit)))
    pen = ImageDraw.Draw(layer)
    for step in range(4):
        x, tip = 9 + step * 7.4, (13, 9, 10.5, 16)[step]
        finger = [(a * unit, b * unit) for a, b in box(x - 3.5, tip, x + 3.5, 50, 3.5)]
        nail = [(a * unit, b * unit) for a, b in box(x - 2, tip + 1.2, x + 2, tip + 6, 1.8)]
        pen.polygon(finger, fill=(*skin, 255), outline=(*darker(skin, 0.3), 255))
        pen.polygon(nail, fill=(*lighter(skin, 0.35), 255))
    pen.polygon([(a * unit, b * unit) for a, b in box(4, 34, 38, 60, 6)], fill=(*skin, 255))
    layer = layer.filter(ImageFilter.GaussianBlur(unit * 0.25))
    turned = layer.rotate(float(rng.uniform(-24, 24)), Image.Resampling.BILINEAR)
    at_left = bool(rng.random() < 0.5)
    x = round(width * (0.06 if at_left else 0.58) + float(rng.uniform(0, 6)) * unit)
    result = scene.copy()
    result.paste(turned, (x, height - round(float(rng.uniform(24, 36)) * unit)), turned)
    return result
