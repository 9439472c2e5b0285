"""Turns a drawing into somebody's photo of it."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageFilter

from listing_lens.demo.chance import generator, pick, weighted
from listing_lens.demo.drawing.geometry import Point
from listing_lens.demo.photos import backgrounds
from listing_lens.demo.photos.clutter import hand, hanger, price_tag
from listing_lens.demo.photos.photographer import Photographer

# EXIF orientation tag → how the upright photo is turned before it is stored.
_STORED = {
    1: None,
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}
# Grain is drawn once and used everywhere: a tile at this strength, shifted and scaled.
_GRAIN_SIZE = 1536
_GRAIN_STRENGTH = 32


@dataclass(frozen=True, slots=True)
class Shot:
    """What differs from one photo to the next by the same person."""

    size: tuple[int, int]
    # Corners of the drawing in the photo, in pixels: upper left, upper right, lower right, lower left.
    corners: tuple[Point, Point, Point, Point]
    # Part of the background texture that is seen, in its pixels, and whether it is turned upside down.
    ground: tuple[int, int, int, int]
    ground_flipped: bool
    light_from: float
    shadow: float
    # Radius in pixels of a 1,000-pixel photo.
    blur: float
    contrast: float
    grain_at: tuple[int, int]
    clutter: str | None
    orientation: int
    quality: int


def plan_shot(person: Photographer, drawing: Image.Image, hangs: bool, rng: np.random.Generator) -> Shot:
    """Choose how a person takes one photo of a drawing; ``hangs`` when it may be put on a hanger."""
    long, short = person.long_edge, round(person.long_edge / person.aspect)
    size = (short, long) if person.portrait else (long, short)
    extent = _extent(drawing)
    fit = min(size[0] / (extent[2] - extent[0]), size[1] / (extent[3] - extent[1]), 1.6 * min(size))
    reach = fit * person.closeness * float(rng.uniform(0.86, 1.08))
    clutter = None
    if rng.random() < person.clutter:
        clutter = weighted(rng, ("hand", "tag", "hanger"), (1, 1, 3 if hangs else 0))
    side = int(backgrounds.SIZE * rng.uniform(0.55, 0.98))
    left, top = (int(rng.integers(backgrounds.SIZE - side + 1)) for _ in range(2))
    height = round(side * min(1.0, size[1] / size[0]))
    width = round(side * min(1.0, size[0] / size[1]))
    return Shot(
        size=size,
        corners=_corners(size, extent, reach, float(rng.normal(0, person.crooked)), rng),
        ground=(left, top, left + width, top + height),
        ground_flipped=person.background != "wall" and bool(rng.random() < 0.5),
        light_from=person.light_from + float(rng.normal(0, 25)),
        shadow=float(rng.uniform(0.25, 0.6)),
        blur=float(rng.uniform(0.8, 2.2)) if rng.random() < person.blurry else 0.0,
        contrast=float(rng.uniform(0.86, 1.06)),
        grain_at=(int(rng.integers(_GRAIN_SIZE)), int(rng.integers(_GRAIN_SIZE))),
        clutter=clutter,
        orientation=pick(rng, (3, 6, 6, 8)) if rng.random() < person.turned else 1,
        quality=int(np.clip(person.quality + rng.integers(-4, 5), 55, 95)),
    )


def _extent(drawing: Image.Image) -> tuple[float, float, float, float]:
    """What the product takes of its drawing: left, top, right, bottom, of 1."""
    left, top, right, bottom = drawing.getbbox() or (0, 0, *drawing.size)
    return left / drawing.width, top / drawing.height, right / drawing.width, bottom / drawing.height


def _corners(
    size: tuple[int, int],
    extent: tuple[float, float, float, float],
    reach: float,
    degrees: float,
    rng: np.random.Generator,
) -> tuple[Point, Point, Point, Point]:
    """Where the corners of the drawing, ``reach`` pixels wide, land: turned, off the centre, seen from one side."""
    middle_x, middle_y = (extent[0] + extent[2]) / 2, (extent[1] + extent[3]) / 2
    centre_x = size[0] * (0.5 + float(rng.normal(0, 0.03)))
    centre_y = size[1] * (0.5 + float(rng.normal(0, 0.03)))
    angle = math.radians(degrees)
    lean_x, lean_y = (float(rng.normal(0, 0.09)) for _ in range(2))
    points = []
    for corner_x, corner_y in ((0, 0), (1, 0), (1, 1), (0, 1)):
        x, y = corner_x - middle_x, corner_y - middle_y
        depth = reach / (1 + lean_x * x + lean_y * y)
        turned_x = (x * math.cos(angle) - y * math.sin(angle)) * depth
        turned_y = (x * math.sin(angle) + y * math.cos(angle)) * depth
        points.append((centre_x + turned_x, centre_y + turned_y))
    return points[0], points[1], points[2], points[3]


def photograph(drawing: Image.Image, person: Photographer, shot: Shot, seed: int) -> Image.Image:
    """The photo, upright, RGB, ``shot.size`` pixels."""
    scene = _ground(seed, person.photographer_id, person.background, shot)
    if shot.clutter == "hanger":
        drawing = Image.alpha_composite(hanger(), drawing)
    if shot.clutter == "tag":
        drawing = Image.alpha_composite(drawing, price_tag(shot.grain_at[0]))
    _place(scene, drawing, shot)
    if shot.clutter == "hand":
        scene = hand(scene, shot.grain_at[0])
    scene = _lit(scene, person, shot)
    if shot.blur:
        scene = scene.filter(ImageFilter.GaussianBlur(shot.blur * max(scene.size) / 1000))
    return _grained(scene, person.noise, shot.grain_at)


@lru_cache(maxsize=256)
def _texture(seed: int, photographer_id: str, name: str) -> Image.Image:
    return backgrounds.background(name, generator(seed, "background", photographer_id))


def _ground(seed: int, photographer_id: str, name: str, shot: Shot) -> Image.Image:
    texture = _texture(seed, photographer_id, name)
    part = texture.resize(shot.size, Image.Resampling.BILINEAR, box=shot.ground)
    return part.transpose(Image.Transpose.ROTATE_180) if shot.ground_flipped else part


def _place(scene: Image.Image, drawing: Image.Image, shot: Shot) -> None:
    """Lay the drawing and its shadow into the scene."""
    width, height = drawing.size
    into_photo = _perspective([(0, 0), (width, 0), (width, height), (0, height)], list(shot.corners))
    left, top, right, bottom = drawing.getbbox() or (0, 0, width, height)
    # Only the part of the drawing that is not empty, and of the photo that it falls on, is computed.
    part = [(left, top), (right, top), (right, bottom), (left, bottom)]
    corners = [_seen_at(into_photo, point) for point in part]
    xs, ys = [x for x, _ in corners], [y for _, y in corners]
    at = (max(0, math.floor(min(xs))), max(0, math.floor(min(ys))))
    size = (min(scene.width, math.ceil(max(xs))) - at[0], min(scene.height, math.ceil(max(ys))) - at[1])
    into_drawing = _perspective([(x - at[0], y - at[1]) for x, y in corners], part)
    seen = drawing.transform(size, Image.Transform.PERSPECTIVE, into_drawing, Image.Resampling.BILINEAR)
    alpha = seen.getchannel("A")
    scene.paste((16, 14, 26), (0, 0), _shadow(alpha, at, scene.size, shot))
    scene.paste(seen, at, alpha)


def _perspective(origins: Sequence[Point], goals: Sequence[Point]) -> list[float]:
    """The eight numbers of the perspective that takes four points to four others, as Pillow wants them."""
    rows, values = [], []
    for (x, y), (u, v) in zip(origins, goals, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
        values += [u, v]
    return [float(value) for value in np.linalg.solve(np.array(rows, float), np.array(values, float))]


def _seen_at(perspective: Sequence[float], point: Point) -> Point:
    a, b, c, d, e, f, g, h = perspective
    x, y = point
    depth = g * x + h * y + 1
    return (a * x + b * y + c) / depth, (d * x + e * y + f) / depth


def _shadow(alpha: Image.Image, at: tuple[int, int], size: tuple[int, int], shot: Shot) -> Image.Image:
    """A soft shadow away from the light and a tight one at the contact, as a mask of the scene."""
    coarse = 8
    small = Image.new("L", (size[0] // coarse + 1, size[1] // coarse + 1))
    reduced = alpha.resize((max(1, alpha.width // coarse), max(1, alpha.height // coarse)), Image.Resampling.BOX)
    throw = max(size) * 0.022 / coarse
    dx, dy = -throw * math.cos(math.radians(shot.light_from)), -throw * math.sin(math.radians(shot.light_from))
    small.paste(reduced, (round(at[0] / coarse + dx), round(at[1] / coarse + dy)))
    soft = small.filter(ImageFilter.GaussianBlur(throw * 0.9))
    contact = Image.new("L", small.size)
    contact.paste(reduced, (at[0] // coarse, at[1] // coarse))
    contact = contact.filter(ImageFilter.GaussianBlur(throw * 0.45))
    both = ImageChops.lighter(soft, contact).point([round(value * shot.shadow) for value in range(256)])
    return both.resize(size, Image.Resampling.BILINEAR)


def _lit(scene: Image.Image, person: Photographer, shot: Shot) -> Image.Image:
    """Colour cast, exposure and the light's falloff across the frame."""
    steps = np.linspace(-1, 1, 24, dtype=np.float32)
    angle = math.radians(shot.light_from)
    away = -(steps[None, :] * math.cos(angle) + steps[:, None] * math.sin(angle))
    light = person.exposure * (1 - person.falloff * np.clip(0.5 + 0.5 * away, 0, 1.3) ** 1.5)
    field = np.clip(light[:, :, None] * np.array(person.cast, np.float32) * 255 / 1.12, 0, 255).astype(np.uint8)
    lit = ImageChops.multiply(scene, Image.fromarray(field, "RGB").resize(scene.size, Image.Resampling.BILINEAR))
    curve = [min(255, round(128 + (value * 1.12 - 128) * shot.contrast)) for value in range(256)]
    return lit.point([max(0, value) for value in curve] * 3)


@lru_cache(maxsize=1)
def _grain() -> Image.Image:
    """Noise about 128, colour and brightness mixed, twice as wide and high as one period."""
    rng = generator(0, "grain")
    shared = rng.standard_normal((_GRAIN_SIZE, _GRAIN_SIZE, 1), dtype=np.float32)
    own = rng.standard_normal((_GRAIN_SIZE, _GRAIN_SIZE, 3), dtype=np.float32)
    tile = np.clip(128 + _GRAIN_STRENGTH * (0.8 * shared + 0.6 * own), 0, 255).astype(np.uint8)
    return Image.fromarray(np.tile(tile, (2, 2, 1)), "RGB")


def _grained(scene: Image.Image, noise: float, at: tuple[int, int]) -> Image.Image:
    left, top = at
    grain = _grain().crop((left, top, left + scene.width, top + scene.height))
    grain = grain.point([round(128 + (value - 128) * noise / _GRAIN_STRENGTH) for value in range(256)] * 3)
    return ImageChops.add(scene, grain, offset=-128)


def encode(photo: Image.Image, shot: Shot, image_format: str) -> bytes:
    """The photo as a file: ``jpeg`` (turned by its EXIF tag), ``png`` or ``webp``."""
    file = io.BytesIO()
    if image_format == "png":
        photo.save(file, "PNG", compress_level=1)
    elif image_format == "webp":
        photo.save(file, "WEBP", quality=shot.quality, method=1)
    else:
        turn = _STORED[shot.orientation]
        stored = photo if turn is None else photo.transpose(turn)
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = shot.orientation
        stored.save(file, "JPEG", quality=shot.quality, exif=exif)
    return file.getvalue()
