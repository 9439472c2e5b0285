"""What sellers lay their things on: square RGB textures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from listing_lens.demo.chance import pick
from listing_lens.demo.palette import RGB

# Pixels of a side of a texture.
SIZE = 640


def background(name: str, rng: np.random.Generator) -> Image.Image:
    """One texture of a kind; every call draws another floor, sheet or table."""
    pixels = BACKGROUNDS[name](rng)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGB")


def _noise(rng: np.random.Generator, columns: int, rows: int) -> np.ndarray:
    """Smooth noise of about ±1 with so many bumps across and down, shape (SIZE, SIZE), float32."""
    coarse = Image.fromarray(rng.standard_normal((rows, columns)).astype(np.float32), "F")
    return np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def _paint(colour: RGB | np.ndarray, light: np.ndarray) -> np.ndarray:
    """A colour under a brightness field (1 is neutral), shape (SIZE, SIZE, 3)."""
    return light[:, :, None] * np.asarray(colour, dtype=np.float32)


def _wood(rng: np.random.Generator) -> np.ndarray:
    planks = int(rng.integers(4, 9))
    tone = pick(rng, [(186, 138, 92), (150, 104, 66), (210, 176, 134), (112, 78, 54)])
    plank = (np.arange(SIZE) * planks // SIZE)[:, None]
    along = np.arange(SIZE)[None, :]
    joint = rng.integers(0, SIZE, planks)[plank]
    tones = rng.normal(1, 0.07, (planks, 2)).astype(np.float32)
    board = tones[plank, (along > joint).astype(int)]
    grain = 0.05 * _noise(rng, 5, 200) + 0.035 * _noise(rng, 12, 320) + 0.03 * np.sin(22 * _noise(rng, 3, 16))
    seam = (np.arange(SIZE)[:, None] * planks % SIZE) < planks * 2
    seam = seam | (np.abs(along - joint) < 2)
    return _paint(tone, (board + grain) * np.where(seam, 0.55, 1))


def _sheet(rng: np.random.Generator) -> np.ndarray:
    tone = pick(
        rng, [(238, 236, 230), (214, 224, 236), (240, 222, 224), (222, 216, 202), (188, 198, 206), (120, 134, 160)]
    )
    folds = np.zeros((SIZE, SIZE), np.float32)
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE
    for _ in range(3):
        angle, waves = rng.uniform(0, np.pi), rng.uniform(3, 9)
        phase = waves * (x * np.cos(angle) + y * np.sin(angle)) * 6.3 + 2.2 * _noise(rng, 4, 4)
        folds += np.sin(phase) * (0.5 + 0.5 * _noise(rng, 3, 3))
    light = 0.95 + 0.045 * np.tanh(folds) + 0.03 * _noise(rng, 3, 3) + 0.012 * _noise(rng, SIZE, SIZE)
    return _paint(tone, light)


def _carpet(rng: np.random.Generator) -> np.ndarray:
    tone = pick(rng, [(150, 146, 142), (196, 182, 160), (96, 104, 122), (146, 96, 92), (88, 104, 88)])
    pile = (
        0.13 * rng.standard_normal((SIZE, SIZE)).astype(np.float32)
        + 0.08 * _noise(rng, 220, 220)
        + 0.05 * _noise(rng, 14, 14)
    )
    return _paint(tone, 0.95 + pile)


def _table(rng: np.random.Generator) -> np.ndarray:
    tone = pick(rng, [(244, 243, 240), (236, 238, 242), (246, 242, 232)])
    return _paint(tone, 0.98 + 0.02 * _noise(rng, 3, 3) + 0.006 * _noise(rng, 90, 90))


def _tiles(rng: np.random.Generator) -> np.ndarray:
    count = int(rng.integers(4, 8))
    tone = pick(rng, [(226, 224, 218), (176, 186, 190), (206, 190, 168), (150, 176, 170)])
    index = np.arange(SIZE) * count // SIZE
    tones = rng.normal(1, 0.035, (count, count)).astype(np.float32)[index[:, None], index[None, :]]
    place = np.arange(SIZE) * count % SIZE
    grout = (place < count * 5)[:, None] | (place < count * 5)[None, :]
    surface = _paint(tone, tones + 0.02 * _noise(rng, 60, 60) + 0.03 * _noise(rng, 4, 4))
    return np.where(grout[:, :, None], _paint((176, 172, 164), 0.92 + 0.05 * _noise(rng, 200, 200)), surface)


def _grass(rng: np.random.Generator) -> np.ndarray:
    blades = (
        _noise(rng, 260, 70) + 0.7 * _noise(rng, 130, 40) + 0.5 * rng.standard_normal((SIZE, SIZE)).astype(np.float32)
    )
    light = 0.85 + 0.2 * blades + 0.08 * _noise(rng, 6, 6)
    pixels = _paint((96, 138, 58), light)
    pixels[:, :, 0] += 22 * _noise(rng, 12, 12)
    return pixels


def _cardboard(rng: np.random.Generator) -> np.ndarray:
    flutes = np.sin(np.arange(SIZE) / SIZE * np.pi * 2 * rng.uniform(50, 80))[None, :].astype(np.float32)
    light = 0.97 + 0.02 * flutes + 0.02 * _noise(rng, 200, 60) + 0.03 * _noise(rng, 4, 4)
    crease = int(rng.integers(SIZE // 6, SIZE * 5 // 6))
    light[crease : crease + 4] *= 0.82
    light[crease + 4 :] *= 0.95
    return _paint((196, 156, 110), light)


def _tatami(rng: np.random.Generator) -> np.ndarray:
    rows = np.arange(SIZE)
    weave = np.sin(rows / SIZE * np.pi * 2 * 80)[:, None] * 0.05 + np.sin(rows / SIZE * np.pi * 2 * 26)[None, :] * 0.02
    light = 0.95 + weave + 0.05 * _noise(rng, 4, 300) + 0.03 * _noise(rng, 4, 4)
    pixels = _paint(pick(rng, [(196, 186, 128), (206, 188, 142), (170, 178, 118)]), light.astype(np.float32))
    edge = int(rng.integers(40, SIZE - 100))
    pixels[edge : edge + 46] = _paint(
        pick(rng, [(46, 74, 58), (58, 46, 40), (44, 54, 84)]), 0.95 + 0.08 * _noise(rng, 160, 160)
    )[:46]
    return pixels


def _concrete(rng: np.random.Generator) -> np.ndarray:
    light = (
        0.95
        + 0.06 * _noise(rng, 8, 8)
        + 0.05 * _noise(rng, 40, 40)
        + 0.05 * rng.standard_normal((SIZE, SIZE)).astype(np.float32)
    )
    return _paint(pick(rng, [(164, 164, 162), (140, 142, 146), (186, 182, 174)]), light)


def _cutting_mat(rng: np.random.Generator) -> np.ndarray:
    pixels = _paint(
        pick(rng, [(38, 104, 84), (50, 78, 120), (60, 62, 68)]),
        0.97 + 0.03 * _noise(rng, 5, 5) + 0.02 * _noise(rng, 300, 300),
    )
    step = int(rng.integers(44, 70))
    for place in range(step // 2, SIZE, step):
        pixels[place : place + 2] += 46
        pixels[:, place : place + 2] += 46
    return pixels


def _gingham(rng: np.random.Generator) -> np.ndarray:
    period = int(rng.integers(36, 80))
    band = ((np.arange(SIZE) // period) % 2).astype(np.float32)
    tone = np.asarray(pick(rng, [(206, 90, 90), (96, 132, 190), (120, 160, 110), (200, 170, 110)]), dtype=np.float32)
    share = ((band[:, None] + band[None, :]) / 2)[:, :, None]
    cloth = (1 - share) * 244 + share * tone
    return cloth * (0.96 + 0.03 * _noise(rng, 5, 5) + 0.025 * _noise(rng, 320, 320))[:, :, None]


def _wall(rng: np.random.Generator) -> np.ndarray:
    tone = pick(rng, [(232, 228, 218), (206, 214, 220), (226, 208, 196), (198, 206, 190)])
    light = 0.97 + 0.03 * _noise(rng, 150, 150) + 0.03 * _noise(rng, 3, 3)
    pixels = _paint(tone, light)
    floor = int(SIZE * rng.uniform(0.74, 0.86))
    pixels[floor:] = _wood(rng)[floor:]
    pixels[floor - 24 : floor] = _paint((240, 238, 232), light)[floor - 24 : floor]
    pixels[floor - 26 : floor - 23] *= 0.8
    return pixels


BACKGROUNDS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "wood": _wood,
    "sheet": _sheet,
    "carpet": _carpet,
    "table": _table,
    "tiles": _tiles,
    "grass": _grass,
    "cardboard": _cardboard,
    "tatami": _tatami,
    "concrete": _concrete,
    "cutting mat": _cutting_mat,
    "gingham": _gingham,
    "wall": _wall,
}
