"""Preparing images for a model: its own preprocessing, with the arithmetic left to the network where that gives the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoImageProcessor

from models.errors import LensError

# How far pixels that we normalise may differ from the model's own preprocessing, in normalised units.
_SAME_PIXELS = 1e-5


@dataclass(frozen=True)
class Preparation:
    """How a model's images are prepared; its weights are not needed for that.

    Attributes:
        side: in pixels, that images are scaled to: the shorter one where a square is cut out afterwards.
        prepare: turns an RGB image into the network's input, mostly (3, h, w) uint8; threads may call it.
        scale, shift: the affine map that the network applies first, each (3, 1, 1) float32.
    """

    side: int
    prepare: Callable[[Image.Image], NDArray[Any]]
    scale: NDArray[np.float32]
    shift: NDArray[np.float32]

    @classmethod
    def load(cls, source: str, folder: Path, own_code: bool = False) -> Preparation:
        """From a model's folder.

        Args:
            source: names the model in errors.
            folder: holds its files.
            own_code: whether code that it ships may run.

        Raises:
            LensError: the folder says nothing of preparation, or of no fixed size.
        """
        try:
            # Always the PIL backend: torchvision's resampling gives slightly different pixels.
            processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=own_code)
        except (OSError, ValueError, ImportError, RuntimeError) as err:
            raise LensError(f"encoder {source!r} cannot be loaded: {str(err).splitlines()[0]}") from err
        if not input_side(processor):
            raise LensError(f"encoder {source!r} scales images to no fixed size: choose a model that does")
        return cls.of(processor)

    @classmethod
    def of(cls, processor: Any) -> Preparation:
        """From transformers' processor of images, with the PIL backend."""
        side = input_side(processor)
        assert side is not None
        return cls(side, *_split(processor))


def _split(
    processor: Any,
) -> tuple[Callable[[Image.Image], NDArray[Any]], NDArray[np.float32], NDArray[np.float32]]:
    """A function that prepares one image, and the affine map (scale, shift) that is left to the network.

    The processor scales and crops, which gives bytes; the rest of its work is the affine map. A processor that does
    anything else prepares images by itself.
    """
    fast = partial(_processed, processor, do_rescale=False, do_normalize=False)
    chance = np.random.default_rng(0)
    probe = Image.fromarray(chance.integers(0, 256, (97, 131, 3), dtype=np.uint8))
    wanted = _processed(processor, probe)
    try:
        rescale = processor.rescale_factor if processor.do_rescale else 1.0
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
        scale, shift = (
            np.broadcast_to(np.asarray(each, np.float32).reshape(-1, 1, 1), (3, 1, 1)).copy()
            for each in (rescale / np.asarray(std), -np.asarray(mean) / np.asarray(std))
        )
        pixels = fast(probe)
        if pixels.dtype == np.uint8 and np.abs(pixels * scale + shift - wanted).max() < _SAME_PIXELS:
            return fast, scale, shift
    except (AttributeError, TypeError, ValueError):
        # Another kind of processor, without these switches.
        pass
    return partial(_processed, processor), np.ones((3, 1, 1), np.float32), np.zeros((3, 1, 1), np.float32)


def _processed(processor: Any, image: Image.Image, **switches: bool) -> NDArray[Any]:
    pixels: NDArray[Any] = np.asarray(processor(images=image, return_tensors="np", **switches)["pixel_values"])[0]
    return pixels


def thumbnail(image: Image.Image, *, side: int) -> NDArray[np.float32]:
    """Pixels of a side × side thumbnail without their mean: (3 side²,) float32."""
    pixels = np.asarray(image.resize((side, side), Image.Resampling.BOX), np.float32).ravel()
    pixels = pixels - pixels.mean(dtype=np.float64).astype(np.float32)
    # An image of a single grey has nothing left: it gets the direction that is orthogonal to all others.
    return pixels if pixels.any() else np.ones_like(pixels)


def input_side(processor: Any) -> int | None:
    size = getattr(processor, "size", None) or {}
    # SigLIP's scale to a square; CLIP's, MobileNetV2's and DINOv2's scale the shorter side and crop a square.
    return size.get("height") or size.get("shortest_edge")
