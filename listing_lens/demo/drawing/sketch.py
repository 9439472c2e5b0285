"""A sheet to draw one product on: filled, shaded, outlined shapes in coordinates of 100 by 100."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TypeVar

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from listing_lens.demo.chance import generator
from listing_lens.demo.drawing.geometry import Point
from listing_lens.demo.drawing.patterns import pattern
from listing_lens.demo.palette import COLOURS, RGB, darker, lighter, luminance
from listing_lens.demo.product import Product

T = TypeVar("T")
Paint = RGB | Image.Image

# Pixels of a finished drawing, and how many times larger it is drawn.
SIZE = 512
_SUPERSAMPLING = 2
_SHEET = SIZE * _SUPERSAMPLING
_UNIT = _SHEET / 100
# Shading is soft: it is computed at this fraction of the sheet.
_COARSE = 4


class Sketch:
    """The sheet, and the product's colours and shape numbers in the form that a drawing needs."""

    def __init__(self, product: Product) -> None:
        self.product = product
        self.main = product.rgb
        self.second = COLOURS[product.second].rgb
        self.accent = COLOURS[product.accent].rgb
        self._sheet = Image.new("RGBA", (_SHEET, _SHEET))
        self._pen = ImageDraw.Draw(self._sheet)

    def vary(self, number: int, low: float, high: float) -> float:
        """Shape number ``number`` of the product, between two bounds."""
        return low + (high - low) * self.product.shape[number]

    def choose(self, number: int, options: Sequence[T]) -> T:
        """One of some options, by a shape number."""
        return options[min(int(self.product.shape[number] * len(options)), len(options) - 1)]

    @cached_property
    def cloth(self) -> Paint:
        """The product's pattern, or its plain main colour."""
        if self.product.pattern is None:
            return self.main
        rng = generator(0, "pattern", self.product.product_id, *map(str, self.product.shape))
        colours = (self.main, self.second, self.accent)
        return pattern(self.product.pattern, _SHEET, colours, self.vary(7, 0.045, 0.1), rng)

    @property
    def ink(self) -> RGB:
        """The second or accent colour, whichever stands out more from the main one."""
        return max(self.second, self.accent, key=lambda colour: abs(luminance(colour) - luminance(self.main)))

    def fill(
        self,
        outline: Sequence[Point],
        paint: Paint,
        *,
        shade: float = 0.35,
        edge: float = 0.5,
        clip: Sequence[Point] | None = None,
    ) -> None:
        """Draw a shape.

        Args:
            outline: its corners.
            paint: a colour or a cloth.
            shade: how round it looks, 0 to 1.
            edge: width of its darker outline; 0 for none.
            clip: draw only what lies inside this other shape.
        """
        bounds = _bounds(outline)
        if bounds is None:
            return
        left, top, right, bottom = bounds
        size = (right - left, bottom - top)
        mask = _mask(outline, left, top, size)
        if clip:
            mask = ImageChops.multiply(mask, _mask(clip, left, top, size))
        layer = Image.new("RGB", size, paint) if isinstance(paint, tuple) else paint.crop(bounds)
        if shade:
            layer = _shaded(layer, mask, shade)
        self._sheet.paste(layer, (left, top), mask)
        if edge and not clip:
            self.line([*outline, outline[0]], _edge_colour(paint if isinstance(paint, tuple) else self.main), edge)

    def tint(self, outline: Sequence[Point], colour: RGB, opacity: float, clip: Sequence[Point] | None = None) -> None:
        """Lay a translucent colour over what is drawn already (a shadow, a reflection); adds nothing outside of it."""
        bounds = _bounds(outline)
        if bounds is None:
            return
        left, top, right, bottom = bounds
        size = (right - left, bottom - top)
        mask = _mask(outline, left, top, size)
        if clip:
            mask = ImageChops.multiply(mask, _mask(clip, left, top, size))
        under = self._sheet.crop(bounds)
        blended = Image.blend(under.convert("RGB"), Image.new("RGB", size, colour), opacity)
        blended.putalpha(under.getchannel("A"))
        self._sheet.paste(blended, (left, top), mask)

    def line(self, points: Sequence[Point], colour: RGB, width: float = 0.6) -> None:
        """A line through some points, with round ends."""
        pixels = [(x * _UNIT, y * _UNIT) for x, y in points]
        thickness = max(1, round(width * _UNIT))
        self._pen.line(pixels, fill=(*colour, 255), width=thickness, joint="curve")
        if thickness > 4:
            for x, y in (pixels[0], pixels[-1]):
                radius = thickness / 2 - 0.5
                self._pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(*colour, 255))

    def stitches(self, points: Sequence[Point], colour: RGB, width: float = 0.4) -> None:
        """A dashed line: every other one of some points is joined to the next."""
        for first, second in zip(points[::2], points[1::2], strict=False):
            self.line([first, second], colour, width)

    def crease(self, points: Sequence[Point], strength: float = 0.22, width: float = 0.9) -> None:
        """A fold: a soft darker line on what is drawn already."""
        ribbon = [*points, *((x + width, y + width * 0.4) for x, y in points[::-1])]
        self.tint(ribbon, (10, 8, 24), strength)

    def hole(self, outline: Sequence[Point]) -> None:
        """Cut a shape out of what is drawn."""
        self._pen.polygon([(x * _UNIT, y * _UNIT) for x, y in outline], fill=(0, 0, 0, 0))

    def text(self, words: str, centre: Point, height: float, colour: RGB) -> None:
        """Latin letters in Pillow's own font, centred."""
        font = ImageFont.load_default(height * _UNIT)
        self._pen.text((centre[0] * _UNIT, centre[1] * _UNIT), words, font=font, fill=(*colour, 255), anchor="mm")

    def finish(self) -> Image.Image:
        """The drawing, RGBA, ``SIZE`` by ``SIZE``."""
        return self._sheet.resize((SIZE, SIZE), Image.Resampling.BOX)


def _bounds(outline: Sequence[Point]) -> tuple[int, int, int, int] | None:
    """The pixels that a shape can touch, (left, top, right, bottom); None when it lies off the sheet."""
    xs, ys = [x for x, _ in outline], [y for _, y in outline]
    left, top = max(0, int(min(xs) * _UNIT)), max(0, int(min(ys) * _UNIT))
    right, bottom = min(_SHEET, int(max(xs) * _UNIT) + 2), min(_SHEET, int(max(ys) * _UNIT) + 2)
    return (left, top, right, bottom) if left < right and top < bottom else None


def _mask(outline: Sequence[Point], left: int, top: int, size: tuple[int, int]) -> Image.Image:
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).polygon([(x * _UNIT - left, y * _UNIT - top) for x, y in outline], fill=255)
    return mask


def _shaded(layer: Image.Image, mask: Image.Image, strength: float) -> Image.Image:
    """Brighten the edges that face the light, at the upper left, and darken those that face away."""
    width, height = (max(1, side // _COARSE) for side in mask.size)
    depth = max(2, round(min(width, height) * 0.16))
    flat = Image.new("L", (width + 2 * depth, height + 2 * depth))
    flat.paste(mask.resize((width, height), Image.Resampling.BOX), (depth, depth))
    soft = flat.filter(ImageFilter.BoxBlur(depth / 2)).filter(ImageFilter.BoxBlur(depth / 2))
    light = ImageChops.subtract(flat, ImageChops.offset(soft, depth // 2, depth // 2))
    dark = ImageChops.subtract(flat, ImageChops.offset(soft, -depth // 2, -depth // 2))
    light = light.point([round(value * strength * 0.5) for value in range(256)])
    dark = dark.point([round(value * strength * 0.75) for value in range(256)])
    relief = ImageChops.subtract(light, dark, offset=128)
    relief = relief.crop((depth, depth, depth + width, depth + height)).resize(mask.size, Image.Resampling.BILINEAR)
    return ImageChops.add(layer, Image.merge("RGB", [relief] * 3), offset=-128)


def _edge_colour(base: RGB) -> RGB:
    return lighter(base, 0.16) if luminance(base) < 45 else darker(base, 0.45)
