"""Search by image can only be shown on products that can be told apart, and are drawn the same each time."""

from dataclasses import replace

import numpy as np
import pytest

from listing_lens.demo.drawing import DRAWINGS, draw
from listing_lens.demo.product import EMBLEMS, PATTERNS, make_product
from listing_lens.demo.taxonomy import KINDS
from listing_lens.demo.words import ENGLISH, JAPANESE

KIND_NUMBERS = {name: number for number, name in enumerate(KINDS)}


def thumbnail(product):
    return np.asarray(draw(product).resize((48, 48)), dtype=float)


def test_every_kind_has_a_drawing_and_words():
    assert set(DRAWINGS) == set(KINDS) == set(ENGLISH) == set(JAPANESE)
    assert len(KINDS) >= 25


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_fills_its_sheet_and_no_two_products_of_it_look_alike(kind):
    first, second = (make_product(7, KIND_NUMBERS[kind] + turn * len(KINDS)) for turn in (0, 1))
    assert first.kind == second.kind == kind

    left, top, right, bottom = draw(first).getbbox()

    assert max(right - left, bottom - top) > 0.6 * 512
    assert np.abs(thumbnail(first) - thumbnail(second)).mean() > 4


def test_equal_products_are_drawn_alike_to_the_byte():
    assert draw(make_product(7, 3)).tobytes() == draw(make_product(7, 3)).tobytes()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_each_pattern_shows(pattern):
    plain = replace(make_product(7, 0), kind="t-shirt", pattern=None, emblem=None)
    assert np.abs(thumbnail(plain) - thumbnail(replace(plain, pattern=pattern))).mean() > 1


@pytest.mark.parametrize("emblem", EMBLEMS)
def test_each_emblem_shows(emblem):
    plain = replace(make_product(7, 0), kind="t-shirt", pattern=None, emblem=None)
    assert np.abs(thumbnail(plain) - thumbnail(replace(plain, emblem=emblem))).mean() > 0.2
