"""Images for an encoder: fetched and decoded in threads, each by itself, so that one bad image is one bad image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from listing_lens.image_source import ImageSource
from models.images import ImageError, decode_image


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why there is no image, and whether that was found when it was fetched or decoded."""

    stage: str
    reason: str


class ImageLoader:
    """Loads images for an encoder that scales them to about `side` pixels. Close it when done."""

    def __init__(self, source: ImageSource, side: int) -> None:
        self._source = source
        self._side = side
        # Reading waits and decoding releases the interpreter's lock: threads serve both.
        self._threads = ThreadPoolExecutor(os.cpu_count())

    def load(self, uris: Sequence[str]) -> Iterator[Image.Image | Unusable]:
        """The image of each address, in order, or why there is none."""
        return self._threads.map(self._load, uris)

    def close(self) -> None:
        self._threads.shutdown()

    def _load(self, uri: str) -> Image.Image | Unusable:
        try:
            data = self._source.read(uri)
        except ImageError as err:
            return Unusable("fetch", str(err))
        try:
            return decode_image(data, self._source.limits, min_side=self._side)
        except ImageError as err:
            return Unusable("decode", str(err))
