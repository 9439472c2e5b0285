from __future__ import annotations

import io

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import scene

from models.pairs.perceptual_hash import NEAR_BITS, bands, near_before, perceptual_hash

numbers = st.integers(0, 2**64 - 1)


class TestTwins:
    def test_hash_nearly_the_same_when_scaled_and_recompressed(self) -> None:
        image, other = (Image.open(io.BytesIO(data)) for data in (scene(1), scene(1, side=120, quality=75)))
        assert (perceptual_hash(image) ^ perceptual_hash(other)).bit_count() <= NEAR_BITS

    def test_other_images_hash_otherwise(self) -> None:
        hashes = [perceptual_hash(Image.open(io.BytesIO(scene(seed)))) for seed in range(12)]
        assert min((one ^ other).bit_count() for one in hashes for other in hashes if one is not other) > NEAR_BITS
        assert all(0 <= one < 2**64 for one in hashes)

    @given(numbers, st.sets(st.integers(0, 63), max_size=NEAR_BITS))
    def test_share_a_band(self, image_hash: int, flipped: set[int]) -> None:
        other = image_hash ^ sum(1 << bit for bit in flipped)
        assert set(bands(image_hash)) & set(bands(other))

    @given(st.lists(st.integers(0, 2**10 - 1), max_size=12))
    def test_are_found_among_the_earlier_ones(self, hashes: list[int]) -> None:
        expected = [
            [place for place in range(later) if (hashes[place] ^ hashes[later]).bit_count() <= NEAR_BITS]
            for later in range(len(hashes))
        ]
        assert [places.tolist() for places in near_before(np.array(hashes, np.uint64))] == expected
