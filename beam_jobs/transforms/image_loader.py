"""Images for an encoder: fetched and decoded in threads, each independently, so that one bad image does not fail the others."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

from PIL import Image

from listing_lens.images.source import ImageSource
from models.images import ImageError, decode_image


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why there is no embedding, at which stage that was found, and whether a retry may succeed."""

    stage: str
    reason: str
    transient: bool = False


class ImageLoader:
    """Loads images for an encoder that scales them to about `side` pixels."""

    def __init__(self, source: ImageSource, side: int) -> None:
        self._source = source
        self._side = side

    def load(self, uris: Sequence[str]) -> Iterator[Image.Image | Unusable]:
        """The image at each address, in order, or why there is none."""
        return loading_threads().map(self._load, uris)

    def _load(self, uri: str) -> Image.Image | Unusable:
        data = self.fetch(uri)
        return data if isinstance(data, Unusable) else self.decode(data)

    def fetch(self, uri: str) -> bytes | Unusable:
        """The image file at an address, or why it cannot be read."""
        try:
            return self._source.read(uri)
        except ImageError as err:
            return Unusable("fetch", str(err), err.transient)

    def decode(self, data: bytes) -> Image.Image | Unusable:
        """The decoded image, or why it cannot be decoded."""
        try:
            return decode_image(data, self._source.limits, min_side=self._side)
        except ImageError as err:
            return Unusable("decode", str(err))


@cache
def loading_threads() -> ThreadPoolExecutor:
    """One pool of loading threads per process, shared by Beam's threads: it bounds the memory taken by decoding."""
    # Fetching is I/O-bound, and decoding and hashing release the GIL: threads suffice for all three.
    return ThreadPoolExecutor(2 * (os.cpu_count() or 1), thread_name_prefix="images")
