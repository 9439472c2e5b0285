"""Perceptual hashes: those of photos that look alike differ in few bits."""

from __future__ import annotations

from collections.abc import Iterator

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Two images are near-duplicates when their perceptual hashes differ in at most this many bits.
NEAR_BITS = 3
# With one band more than differing bits, at least one band has none of them: near-duplicates share a band.
_BANDS, _BAND_BITS = NEAR_BITS + 1, 16


def perceptual_hash(image: Image.Image) -> int:
    """64 bits that change little when an image is scaled, recompressed or made a little brighter.

    The signs of its lowest frequencies against their median (pHash; Zauner 2010, as the `imagehash` package computes it).
    """
    return int.from_bytes(np.packbits(imagehash.phash(image).hash).tobytes())


def bands(image_hash: int) -> list[int]:
    """Keys of a 64-bit hash, (4,): two hashes that differ in no more than `NEAR_BITS` bits have at least one in common."""
    values = ((image_hash >> (_BAND_BITS * place)) & (2**_BAND_BITS - 1) for place in range(_BANDS))
    return [place << _BAND_BITS | value for place, value in enumerate(values)]


def near_before(hashes: NDArray[np.uint64]) -> Iterator[NDArray[np.intp]]:
    """For each of n hashes (n,), the positions of the earlier ones that differ from it in at most `NEAR_BITS` bits."""
    for place, image_hash in enumerate(hashes):
        yield np.flatnonzero(np.bitwise_count(hashes[:place] ^ image_hash) <= NEAR_BITS)
