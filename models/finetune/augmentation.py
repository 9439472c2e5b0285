"""Augmentation for product photos: crops that keep the item in view, mirroring, and lighting; never the hue."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.finetune.recipe import Recipe

# A crop's aspect ratio differs from the image's by up to this factor.
_MOST_STRETCH = 1.25


def augment(image: Image.Image, side: int, recipe: Recipe, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One random view of an RGB image: (side, side, 3) uint8.

    Colours are what titles name and buyers look for: brightness and contrast change, as between two sellers' lamps, but
    hue does not.
    """
    view = image.resize((side, side), Image.Resampling.BICUBIC, box=_crop(image.size, recipe.smallest_crop, rng))
    pixels = np.asarray(view, np.float32)
    if rng.random() < recipe.flip:
        pixels = pixels[:, ::-1]
    if recipe.jitter:
        brightness, contrast = rng.uniform(1 - recipe.jitter, 1 + recipe.jitter, 2)
        mean = pixels.mean()
        pixels = (pixels - mean) * contrast + mean * brightness
    view_pixels: NDArray[np.uint8] = np.clip(pixels + 0.5, 0, 255).astype(np.uint8)
    return view_pixels


def _crop(size: tuple[int, int], smallest: float, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A random box within an image of this size, with at least this share of its area, slightly stretched."""
    width, height = size
    area = rng.uniform(smallest, 1)
    # Stretched only as far as the image has room: a whole image is not stretched.
    most = math.log(min(_MOST_STRETCH, 1 / area))
    stretch = math.exp(rng.uniform(-most, most))
    crop_width, crop_height = min(1.0, math.sqrt(area * stretch)) * width, min(1.0, math.sqrt(area / stretch)) * height
    left, top = rng.uniform(0, width - crop_width), rng.uniform(0, height - crop_height)
    return left, top, left + crop_width, top + crop_height
