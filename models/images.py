"""Decoding: the bytes that a seller uploaded become one upright RGB image, or a stated reason why not."""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass

from PIL import ExifTags, Image, UnidentifiedImageError

# The formats that marketplaces accept; anything else that Pillow could open (PSD, EPS …) is refused unread. JPEG stands
# for MPO too, which cameras write: a JPEG with further pictures behind it.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# Fewer pixels than this on a side show nothing that could be searched for.
MIN_SIDE = 8

# What each EXIF orientation takes to stand upright.
_UPRIGHT: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow's own size warning: the caller's limit is the one that counts. Set once, since decoding runs in threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


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
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > limits.max_pixels:
            raise ImageError(f"{width}×{height} pixels exceed the limit of {limits.max_pixels:,}")
        if min(width, height) < MIN_SIDE:
            raise ImageError(f"{width}×{height} pixels are too few to show anything")
        if min_side and image.format in ("JPEG", "MPO"):
            image.draft("RGB", (2 * min_side, 2 * min_side))
        image.load()
        return _to_rgb(_upright(image))
    except ImageError:
        raise
    except UnidentifiedImageError as err:
        raise ImageError("not an image of a supported format") from err
    except Image.DecompressionBombError as err:
        raise ImageError(f"so many pixels that the limit of {limits.max_pixels:,} is exceeded") from err
    except _DAMAGED as err:
        raise ImageError(f"damaged: {err}") from err


# What Pillow's decoders raise on damaged data.
_DAMAGED = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    ArithmeticError,
    LookupError,
    MemoryError,
    TypeError,
    struct.error,
)


def _upright(image: Image.Image) -> Image.Image:
    # ImageOps.exif_transpose would write the whole EXIF anew, and fail on a good picture with an odd tag.
    turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return image.point(lambda value: value / 256).convert("L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
