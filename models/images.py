"""Decoding: the bytes that a seller uploaded become one upright RGB image, or an error that says why not."""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass

import numpy as np
import pillow_heif
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, TiffImageFile

from models.image_files import pixels_only

# The formats that marketplaces accept; anything else that Pillow could open (PSD, EPS …) is refused unread. MPO, which
# cameras write, is a JPEG followed by further pictures; HEIF is what iPhones store (HEIC).
FORMATS = ("JPEG", "PNG", "WEBP", "HEIF", "GIF", "BMP", "TIFF")
# A side with fewer pixels shows nothing that could be searched for.
MIN_SIDE = 8
# No item for sale is this many times longer than wide.
MAX_RATIO = 100

_WHITE_IS_ZERO = 0
# The transposition that makes each EXIF orientation upright.
_UPRIGHT: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow's warning of large images, since the caller's limit counts, and those of damage, which is an `ImageError` or harmless.
# Set once, since decoding runs in threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# Whoever decodes many images has a thread for each already.
pillow_heif.register_heif_opener(thumbnails=False, decode_threads=1)


class ImageError(ValueError):
    """The image is unusable.

    Attributes:
        transient: whether another attempt, later, may succeed; otherwise it would end the same way.
    """

    def __init__(self, reason: str, *, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient


class ImageTooLargeError(ImageError):
    """The image has more bytes or pixels than the limits allow."""


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
        ImageTooLargeError: it exceeds a limit.
        ImageError: with the reason, for data that is no such image.
    """
    if not data:
        raise ImageError("empty file")
    if len(data) > limits.max_bytes:
        raise ImageTooLargeError(f"{len(data):,} bytes exceed the limit of {limits.max_bytes:,}")
    try:
        pixels, orientation = pixels_only(data)
        image = Image.open(io.BytesIO(pixels), formats=FORMATS)
        width, height = image.size
        if width * height > limits.max_pixels:
            raise ImageTooLargeError(f"{width}×{height} pixels exceed the limit of {limits.max_pixels:,}")
        if min(width, height) < MIN_SIDE:
            raise ImageError(f"{width}×{height} pixels are too few to show anything")
        if max(width, height) > MAX_RATIO * min(width, height):
            # Encoders that cut out a square scale the shorter side first: of 8 × 125,000 pixels they would make gigabytes.
            raise ImageError(f"{width}×{height} pixels are too long and narrow to show anything")
        if min_side and image.format == "JPEG":
            image.draft("RGB", (2 * min_side, 2 * min_side))
        # Loading discards which part of the canvas a GIF's first frame covers.
        covered = image.tile[0].extents if image.format == "GIF" and image.tile else None
        image.load()
        if image.format == "HEIF" and image.size != (width, height):
            raise ImageError(f"damaged: {width}×{height} pixels by its header, {image.width}×{image.height} in fact")
        rgb = _over_white(_to_rgb(image), covered)
        turn = _UPRIGHT.get(orientation)
        return rgb if turn is None else rgb.transpose(turn)
    except ImageError:
        raise
    except UnidentifiedImageError as err:
        raise ImageError("not an image of a supported format") from err
    except Image.DecompressionBombError as err:
        raise ImageTooLargeError(f"so many pixels that the limit of {limits.max_pixels:,} is exceeded") from err
    except _DAMAGED as err:
        raise ImageError(f"damaged: {err}") from err


# What Pillow's decoders raise for damaged data.
_DAMAGED = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    ArithmeticError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    struct.error,
)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return _from_16_bits(image).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(f"pixels of 32 bits ({image.mode}), of which nobody says what is white")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _over_white(image: Image.Image, covered: tuple[int, int, int, int] | None) -> Image.Image:
    if covered in (None, (0, 0, *image.size)):
        return image
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image.crop(covered), covered)
    return canvas


def _from_16_bits(image: Image.Image) -> Image.Image:
    grey = np.asarray(image).astype(np.uint16)
    if "transparency" in image.info:
        grey[grey == image.info["transparency"]] = 0xFFFF
    if isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO:
        grey = 0xFFFF - grey
    return Image.fromarray((grey >> 8).astype(np.uint8))
