"""Augmentation: views of a photo that show the same thing in the same colours."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_training import picture

from models.finetune.augmentation import augment
from models.finetune.recipe import Recipe

PLAIN = Recipe(smallest_crop=1, flip=0, jitter=0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(size=st.tuples(st.integers(1, 60), st.integers(1, 60)), side=st.integers(1, 40), seed=st.integers(0, 99))
def test_any_image_becomes_a_square_of_bytes(size: tuple[int, int], side: int, seed: int) -> None:
    view = augment(picture(1, size), side, Recipe(), rng(seed))
    assert view.shape == (side, side, 3)
    assert view.dtype == np.uint8


def test_the_same_random_numbers_give_the_same_view() -> None:
    views = [augment(picture(1), 16, Recipe(), rng(seed)) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(views[0], views[1])
    assert (views[0] != views[2]).any()


@pytest.mark.parametrize("size", [(16, 16), (40, 25), (9, 31)])
def test_with_nothing_to_draw_it_is_the_parents_resize(size: tuple[int, int]) -> None:
    image = picture(2, size)
    expected = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))
    for seed in range(5):
        np.testing.assert_array_equal(augment(image, 16, PLAIN, rng(seed)), expected)


def test_a_flip_is_a_mirror_image() -> None:
    image = picture(2, (16, 16))
    flipped = augment(image, 16, PLAIN.model_copy(update={"flip": 1.0}), rng())
    np.testing.assert_array_equal(flipped, augment(image, 16, PLAIN, rng())[:, ::-1])


@given(colour=st.tuples(*[st.integers(60, 190)] * 3), seed=st.integers(0, 999))
def test_hue_stays(colour: tuple[int, int, int], seed: int) -> None:
    view = augment(Image.new("RGB", (20, 20), colour), 8, Recipe(), rng(seed)).astype(float)
    assert (view == view[0, 0]).all()
    # Two colours have one hue when the one is a grey added to a multiple of the other.
    before, after = np.array(colour) - np.mean(colour), view[0, 0] - view[0, 0].mean()
    contrast = 1.0 if not before.any() else float(after @ before / (before @ before))
    assert 0.8 - 0.05 <= contrast <= 1.2 + 0.05 or np.abs(before).max() < 20
    np.testing.assert_allclose(after, contrast * before, atol=1.5)


def test_light_changes() -> None:
    flat = Image.new("RGB", (20, 20), (100, 100, 100))
    lights = [augment(flat, 4, Recipe(), rng(seed)).mean() for seed in range(50)]
    assert min(lights) < 90
    assert max(lights) > 110


@given(seed=st.integers(0, 999), smallest=st.floats(0.2, 1))
def test_a_crop_keeps_its_share_of_the_image(seed: int, smallest: float) -> None:
    # Coordinates for colours: the corners of the view tell the box.
    ramp = np.linspace(0, 255, 256).astype(np.uint8)
    image = Image.fromarray(np.stack([*np.meshgrid(ramp, ramp), np.zeros((256, 256), np.uint8)], axis=2))
    view = augment(image, 64, PLAIN.model_copy(update={"smallest_crop": smallest}), rng(seed)).astype(float) / 255
    width, height = view[0, -1, 0] - view[0, 0, 0], view[-1, 0, 1] - view[0, 0, 1]
    # The outer pixels' centres lie within the box by half a pixel.
    area = width * height * (64 / 63) ** 2
    assert smallest - 0.03 <= area <= 1.03
