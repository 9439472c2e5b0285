from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from tiny import scene

from models.images import ImageError
from models.pairs.perceptual_hash import perceptual_hash
from models.pairs.photos import as_jpeg


class TestImagesToTrainOn:
    @pytest.mark.parametrize(
        ("size", "stored"),
        [((600, 400), (120, 80)), ((400, 600), (80, 120)), ((60, 90), (60, 90)), ((80, 80), (80, 80))],
    )
    def test_are_scaled_down_to_the_side_never_up(self, size: tuple[int, int], stored: tuple[int, int]) -> None:
        jpeg, _ = as_jpeg(Image.new("RGB", size, "teal"), 80)
        with Image.open(io.BytesIO(jpeg)) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", stored)

    def test_keep_their_pixels(self) -> None:
        image = Image.open(io.BytesIO(scene(3)))
        jpeg, image_hash = as_jpeg(image, 288)
        stored = np.asarray(Image.open(io.BytesIO(jpeg)), float)
        assert np.abs(stored - np.asarray(image, float)).mean() < 2
        assert image_hash == perceptual_hash(image)

    def test_that_no_jpeg_can_hold_are_refused(self) -> None:
        with pytest.raises(ImageError, match="too long and narrow"):
            as_jpeg(Image.new("RGB", (70_000, 8)), 80)
