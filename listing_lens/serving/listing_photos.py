"""Listings' photos for a page: small, of one size, and only from where images may be read."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence

from PIL import Image

from listing_lens.images.source import ImageSource
from listing_lens.lake.windows import LISTINGS, Lake
from models.images import decode_image

# The longer side, in pixels: a phone shows half its width with twice the points.
SIDE = 480
# A page may show photos below the image roots of this many of the newest windows.
_RECENT_WINDOWS = 100
# A new window may bring a new image root.
_LOOK_AGAIN_S = 60.0


class ListingPhotos:
    """Makes thumbnails; several threads may.

    Args:
        images: where images may be read.
        roots: finds the image roots of the lake's listings, where they may be read as well.
    """

    def __init__(
        self, images: ImageSource, roots: Callable[[], Sequence[str]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._images, self._roots, self._clock = images, roots, clock
        self._allowing, self._looked_at = images, -math.inf

    def read(self, image_uri: str) -> Image.Image:
        """A listing's photo, decoded. Raises ImageError."""
        if self._clock() - self._looked_at > _LOOK_AGAIN_S:
            self._allowing, self._looked_at = self._images.allowing(self._roots()), self._clock()
        return decode_image(self._allowing.read(image_uri), self._allowing.limits, min_side=SIDE)

    def thumbnail(self, image_uri: str) -> bytes:
        """A JPEG without metadata, of at most SIDE × SIDE pixels. Raises ImageError."""
        image = self.read(image_uri)
        image.thumbnail((SIDE, SIDE))
        return as_jpeg(image)


def as_jpeg(image: Image.Image, quality: int = 85) -> bytes:
    """An RGB image as a JPEG: its pixels, and nothing of where they were taken."""
    data = io.BytesIO()
    image.save(data, format="JPEG", quality=quality)
    return data.getvalue()


def recent_image_roots(lake: Lake) -> list[str]:
    """The image roots of the newest windows of listings."""
    return lake.image_roots(LISTINGS, lake.windows(LISTINGS)[-_RECENT_WINDOWS:])
