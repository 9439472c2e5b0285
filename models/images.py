"""Decoding: the bytes that a seller uploaded become one upright RGB image, or a stated reason why not."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

from PIL import Image, ImageOps, UnidentifiedImageError

# The formats that marketplaces accept; anything else that Pillow could open (PSD, EPS …) is refused unread.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO")
# Fewer pixels than this on a side show nothing that could be searched for.
MIN_SIDE = 8


class ImageError(ValueError):
    """The image is unusable for good: another try would end the same."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an image may cost: `max_bytes` encoded, `max_pixels` decoded."""

    max_bytes: int
    max_pixels: int


def decode_image(data: bytes, limits: ImageLimits, *, min_side: int = 0) -> Image.Image:
    """Decode the first frame, upright by its EXIF orientation, in RGB over white.

    Args:
        data: the encoded image.
        limits: checked on the bytes and on the header, before pixels are decoded.
        min_side: the caller scales the image down to about this side, so a JPEG of at least twice as much may be
            decoded at a half, a quarter or an eighth of its size, which is several times faster.

    Raises:
        ImageError: with the reason, for data that is no such image.
    """
    if not data:
        raise ImageError("empty file")
    if len(data) > limits.max_bytes:
        raise ImageError(f"{len(data):,} bytes exceed the limit of {limits.max_bytes:,}")
    try:
        with warnings.catch_warnings():
            # Pillow's own size warning: the limit below is the one that counts.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if width * height > limits.max_pixels:
                raise ImageError(f"{width}×{height} pixels exceed the limit of {limits.max_pixels:,}")
            if min(width, height) < MIN_SIDE:
                raise ImageError(f"{width}×{height} pixels are too few to show anything")
            if min_side and image.format == "JPEG":
                image.draft("RGB", (2 * min_side, 2 * min_side))
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except (UnidentifiedImageError, Image.DecompressionBombError) as err:
        raise ImageError("not an image of a supported format") from err
    except (OSError, ValueError, SyntaxError, EOFError, ArithmeticError, LookupError, MemoryError, TypeError) as err:
        # Pillow's decoders raise any of these on damaged data.
        raise ImageError(f"damaged: {err}") from err


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        return image.point(lambda value: value / 256).convert("L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
