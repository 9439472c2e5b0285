"""Photos as a model is trained on them."""

from __future__ import annotations

import io

from PIL import Image

from models.images import ImageError
from models.pairs.perceptual_hash import perceptual_hash

_JPEG_SIDE = 65_500


def as_jpeg(image: Image.Image, side: int) -> tuple[bytes, int]:
    """An RGB image as it is trained on: a JPEG whose shorter side has at most `side` pixels, and its `perceptual_hash`.

    Larger images are scaled down (Lanczos), none is scaled up; at quality 95 compression leaves hardly a trace.

    Raises:
        ImageError: the image is too long and narrow for JPEG, whose limit is 65,500 pixels a side.
    """
    scale = side / min(image.size)
    if scale < 1:
        image = image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
        )
    if max(image.size) > _JPEG_SIDE:
        raise ImageError(f"{image.width}×{image.height} pixels are too long and narrow for a JPEG")
    data = io.BytesIO()
    image.save(data, "JPEG", quality=95)
    return data.getvalue(), perceptual_hash(image)
