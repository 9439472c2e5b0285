"""Photos as phones store them: turned, with a tag; and files that are broken in the way that they claim."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageOps

from listing_lens.demo.chance import generator
from listing_lens.demo.drawing import draw
from listing_lens.demo.photos.backgrounds import BACKGROUNDS
from listing_lens.demo.photos.broken import BREAKAGES, break_image
from listing_lens.demo.photos.photograph import encode, photograph, plan_shot
from listing_lens.demo.photos.photographer import make_photographer
from listing_lens.demo.product import make_product


@pytest.fixture(scope="module")
def drawing():
    return draw(make_product(7, 7))


def take(drawing, person, name="photo"):
    shot = plan_shot(person, drawing, False, generator(7, name))
    return photograph(drawing, person, shot, 7), shot


def read(data):
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize(("orientation", "swapped"), [(1, False), (3, False), (6, True), (8, True)])
def test_a_turned_photo_is_upright_once_its_tag_is_applied(drawing, orientation, swapped):
    photo, shot = take(drawing, replace(make_photographer(7, "seller-1"), aspect=4 / 3))

    stored = read(encode(photo, replace(shot, orientation=orientation, quality=95), "jpeg"))

    assert (stored.size == photo.size[::-1]) == swapped
    upright = ImageOps.exif_transpose(stored)
    assert upright.size == photo.size
    assert np.abs(np.asarray(upright, float) - np.asarray(photo, float)).mean() < 6
    if orientation != 1:
        as_stored = stored.resize(photo.size)
        assert np.abs(np.asarray(as_stored, float) - np.asarray(photo, float)).mean() > 12


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp"])
def test_formats(drawing, image_format):
    photo, shot = take(drawing, make_photographer(7, "seller-2"))
    image = read(encode(photo, replace(shot, orientation=1), image_format))
    assert image.format == image_format.upper()
    assert image.size == photo.size


def test_sizes_and_qualities_lie_in_their_ranges(drawing):
    for number in range(40):
        person = make_photographer(7, f"seller-{number}")
        shot = plan_shot(person, drawing, True, generator(7, str(number)))
        assert 640 <= max(shot.size) <= 1440
        assert 55 <= shot.quality <= 95


@pytest.mark.parametrize("place", BACKGROUNDS)
def test_the_product_is_in_the_photo_wherever_it_lies(drawing, place):
    person = replace(make_photographer(7, "seller-3"), background=place, clutter=0, blurry=0, long_edge=640)
    nothing = Image.new("RGBA", drawing.size)
    shot = plan_shot(person, drawing, False, generator(7, place))

    with_it, without = (photograph(thing, person, shot, 7) for thing in (drawing, nothing))

    middle = (shot.size[0] // 3, shot.size[1] // 3, shot.size[0] * 2 // 3, shot.size[1] * 2 // 3)
    difference = np.asarray(with_it.crop(middle), float) - np.asarray(without.crop(middle), float)
    assert np.abs(difference).mean() > 8


@pytest.mark.parametrize("clutter", ["hand", "tag", "hanger"])
def test_clutter_shows(drawing, clutter):
    person = make_photographer(7, "seller-4")
    shot = replace(plan_shot(person, drawing, True, generator(7, "clutter")), clutter=None)
    bare, cluttered = (photograph(drawing, person, replace(shot, clutter=what), 7) for what in (None, clutter))
    assert bare.tobytes() != cluttered.tobytes()


def test_two_sellers_take_different_photos_of_one_product(drawing):
    first, second = (take(drawing, replace(make_photographer(7, name), aspect=1)) for name in ("seller-5", "seller-6"))
    pixels = [np.asarray(photo.resize((64, 64)), float) for photo, _ in (first, second)]
    assert np.abs(pixels[0] - pixels[1]).mean() > 10


class TestBroken:
    @pytest.fixture(scope="class")
    def photo(self, drawing):
        photo, shot = take(drawing, make_photographer(7, "seller-1"))
        return encode(photo, shot, "jpeg")

    def test_truncated(self, photo):
        data = break_image("truncated", photo)
        assert Image.open(io.BytesIO(data)).format == "JPEG"
        with pytest.raises(OSError, match="truncated"):
            read(data)

    def test_not_an_image(self, photo):
        with pytest.raises(OSError, match="cannot identify"):
            read(break_image("not_an_image", photo))

    def test_one_pixel(self, photo):
        assert read(break_image("one_pixel", photo)).size == (1, 1)

    def test_huge(self, photo, monkeypatch):
        data = break_image("huge", photo)
        assert len(data) < 8_000_000
        with pytest.raises(Image.DecompressionBombError):
            Image.open(io.BytesIO(data))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        assert Image.open(io.BytesIO(data)).size == (30_000, 30_000)

    def test_empty(self, photo):
        assert break_image("empty", photo) == b""

    def test_every_breakage_is_known(self, photo):
        assert all(break_image(breakage, photo) != photo for breakage in BREAKAGES)
        with pytest.raises(ValueError, match="scratched"):
            break_image("scratched", photo)
