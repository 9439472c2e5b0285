"""Decoding what sellers upload: phones turn photos by EXIF, shops export every mode, and some files are no images at all.

A wrong pixel here is a wrong vector for ever, and an exception other than `ImageError` fails a whole batch, so damaged
files are tried by the hundred.
"""

from __future__ import annotations

import io
import random
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from models.images import ImageError, ImageLimits, decode_image

LIMITS = ImageLimits(max_bytes=1_000_000, max_pixels=2_000_000)
_ORIENTATION = 0x0112


def picture(width: int = 96, height: int = 64) -> Image.Image:
    """Smooth, and equal to none of its own turns and mirrors."""
    y, x = np.mgrid[:height, :width]
    red, green = 255 * x // width, 255 * y // height
    blue = np.where((x < width // 3) & (y < height // 4), 255, 40)
    return Image.fromarray(np.dstack([red, green, blue]).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of pixel values."""
    assert one.size == other.size
    return float(np.abs(np.asarray(one, int) - np.asarray(other, int)).mean())


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    return exif


# How a camera stores an upright scene under each orientation: the opposite of what a viewer does.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def stored(orientation: int, upright: Image.Image) -> Image.Image:
    turn = STORED[orientation]
    return upright if turn is None else upright.transpose(turn)


class TestOrientation:
    @pytest.mark.parametrize("orientation", STORED)
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
    def test_is_upright_after(self, orientation: int, kind: str) -> None:
        options = {"quality": 95} if kind in ("JPEG", "MPO", "WEBP") else {}
        data = encoded(stored(orientation, picture()), kind, exif=oriented(orientation), **options)
        assert difference(decode_image(data, LIMITS), picture()) < 4

    @pytest.mark.parametrize("orientation", STORED)
    @pytest.mark.parametrize("kind", ["JPEG", "MPO"])
    def test_is_upright_after_a_reduced_decoding(self, orientation: int, kind: str) -> None:
        scene = picture(960, 640)
        data = encoded(stored(orientation, scene), kind, quality=95, exif=oriented(orientation))
        decoded = decode_image(data, LIMITS, min_side=64)
        assert decoded.width < 960
        assert difference(decoded.resize((96, 64)), scene.resize((96, 64))) < 2

    @pytest.mark.parametrize("orientation", [0, 9, 65535])
    def test_that_means_nothing_is_passed_over(self, orientation: int) -> None:
        data = encoded(picture(), "PNG", exif=oriented(orientation))
        assert difference(decode_image(data, LIMITS), picture()) == 0

    def test_odd_metadata_do_not_spoil_a_good_picture(self) -> None:
        # The picture's height as a text: Pillow reads it, and cannot write it again.
        entries = struct.pack(">HHI4s", 0x0101, 2, 4, b"abc\0") + struct.pack(">HHII", _ORIENTATION, 3, 1, 6 << 16)
        exif = b"Exif\0\0MM\0\x2a" + struct.pack(">IH", 8, 2) + entries + struct.pack(">I", 0)
        data = encoded(stored(6, picture()), "JPEG", quality=95, exif=exif)
        assert difference(decode_image(data, LIMITS), picture()) < 4


class TestModes:
    @pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
    def test_rgb_is_unchanged(self, kind: str) -> None:
        assert difference(decode_image(encoded(picture(), kind), LIMITS), picture()) == 0

    @pytest.mark.parametrize(
        ("image", "kind", "options", "colour"),
        [
            pytest.param(Image.new("L", (9, 9), 77), "PNG", {}, (77, 77, 77), id="L"),
            pytest.param(Image.new("L", (9, 9), 77), "JPEG", {}, (77, 77, 77), id="L JPEG"),
            pytest.param(Image.new("1", (9, 9), 1), "PNG", {}, (255, 255, 255), id="1"),
            pytest.param(Image.new("LA", (9, 9), (0, 255)), "PNG", {}, (0, 0, 0), id="LA, opaque"),
            pytest.param(Image.new("LA", (9, 9), (0, 0)), "PNG", {}, (255, 255, 255), id="LA, clear"),
            pytest.param(Image.new("RGBA", (9, 9), (200, 0, 0, 255)), "PNG", {}, (200, 0, 0), id="RGBA, opaque"),
            pytest.param(Image.new("RGBA", (9, 9), (200, 0, 0, 0)), "PNG", {}, (255, 255, 255), id="RGBA, clear"),
            pytest.param(Image.new("RGBA", (9, 9), (0, 0, 0, 51)), "PNG", {}, (204, 204, 204), id="RGBA, a fifth"),
            pytest.param(Image.new("RGBA", (9, 9), (0, 0, 0, 0)), "WEBP", {}, (255, 255, 255), id="WebP, clear"),
            pytest.param(Image.new("P", (9, 9), 0), "PNG", {"transparency": 0}, (255, 255, 255), id="P, clear"),
            pytest.param(Image.new("P", (9, 9), 0), "PNG", {}, (0, 0, 0), id="P"),
            pytest.param(Image.new("L", (9, 9), 5), "PNG", {"transparency": 5}, (255, 255, 255), id="L, clear"),
            pytest.param(
                Image.new("RGB", (9, 9), (1, 2, 3)), "PNG", {"transparency": (1, 2, 3)}, (255,) * 3, id="RGB, clear"
            ),
            pytest.param(Image.new("I;16", (9, 9), 77 * 256), "PNG", {}, (77, 77, 77), id="I;16 PNG"),
            pytest.param(Image.new("I;16", (9, 9), 65535), "TIFF", {}, (255, 255, 255), id="I;16 TIFF"),
            pytest.param(Image.new("CMYK", (9, 9), (0, 255, 255, 0)), "TIFF", {}, (255, 0, 0), id="CMYK TIFF"),
            pytest.param(Image.new("P", (9, 9), 0), "GIF", {}, (0, 0, 0), id="GIF"),
        ],
    )
    def test_become_rgb_over_white(
        self, image: Image.Image, kind: str, options: dict[str, object], colour: tuple[int, ...]
    ) -> None:
        if image.mode == "P":
            image.putpalette([0, 0, 0, 255, 0, 0])
        decoded = decode_image(encoded(image, kind, **options), LIMITS)
        assert (decoded.mode, decoded.size) == ("RGB", (9, 9))
        assert decoded.getpixel((4, 4)) == colour

    def test_cmyk_jpeg_is_the_same_scene(self) -> None:
        decoded = decode_image(encoded(picture().convert("CMYK"), "JPEG", quality=95), LIMITS)
        assert difference(decoded, picture()) < 5

    @pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "MPO", "TIFF"])
    def test_of_several_frames_the_first_counts(self, kind: str) -> None:
        frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        red, green, blue = decode_image(data, LIMITS).getpixel((8, 8))
        assert red > 250
        assert max(green, blue) < 5


class TestReducedDecoding:
    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    def test_gives_nearly_the_same_small_picture(self, mode: str) -> None:
        noise = np.random.default_rng(0).normal(0, 20, (768, 1024, 1))
        scene = Image.fromarray(np.clip(np.asarray(picture(1024, 768)) + noise, 0, 255).astype(np.uint8)).convert(mode)
        data = encoded(scene, "JPEG", quality=90)
        limits = ImageLimits(max_bytes=10_000_000, max_pixels=2_000_000)
        small, whole = decode_image(data, limits, min_side=64), decode_image(data, limits)
        assert (small.size, whole.size) == ((256, 192), (1024, 768))
        # Both are scaled with the encoders' filter.
        assert difference(small.resize((64, 64), Image.Resampling.BICUBIC), whole.resize((64, 64), 3)) < 1.5

    @pytest.mark.parametrize("side", [1, 33, 64, 320, 5000])
    def test_never_falls_below_twice_the_side_that_is_needed(self, side: int) -> None:
        decoded = decode_image(encoded(picture(640, 480), "JPEG"), LIMITS, min_side=side)
        assert min(decoded.size) >= min(2 * side, 480)


def png_header(width: int, height: int) -> bytes:
    """A PNG of a hundred bytes that claims any size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


class TestRefused:
    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            pytest.param(b"", "empty file", id="nothing"),
            pytest.param(b"<!doctype html><title>404</title>", "not an image", id="HTML"),
            pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image", id="SVG"),
            pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image", id="PostScript"),
            pytest.param(b"8BPS\0\1" + bytes(100), "not an image", id="Photoshop"),
            pytest.param(encoded(picture(), "PPM"), "not an image", id="a format that nobody sells in"),
            pytest.param(b"\xff\xd8\xff", "not an image", id="the first bytes of a JPEG"),
            pytest.param(encoded(Image.new("RGB", (1, 1)), "PNG"), "1×1 pixels are too few", id="a tracking pixel"),
            pytest.param(encoded(Image.new("RGB", (500, 7)), "PNG"), "500×7 pixels are too few", id="a line"),
            pytest.param(bytes(1_000_001), "1,000,001 bytes exceed the limit of 1,000,000", id="too many bytes"),
            pytest.param(png_header(2000, 1001), "2000×1001 pixels exceed the limit", id="too many pixels"),
            pytest.param(png_header(30_000, 30_000), "the limit of 2,000,000", id="so many that Pillow objects too"),
        ],
    )
    def test_with_the_reason(self, data: bytes, reason: str) -> None:
        with pytest.raises(ImageError, match=reason):
            decode_image(data, LIMITS)

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
    @pytest.mark.parametrize("share", [0.3, 0.9])
    def test_when_cut_off(self, kind: str, share: float) -> None:
        data = encoded(picture(), kind)
        with pytest.raises(ImageError):
            decode_image(data[: int(share * len(data))], LIMITS)

    def test_not_at_the_very_limits(self) -> None:
        data = encoded(picture(100, 50), "PNG")
        assert decode_image(data, ImageLimits(len(data), 5000)).size == (100, 50)

    @pytest.mark.parametrize("size", [(8, 8), (9, 500)], ids=str)
    def test_not_when_just_large_enough(self, size: tuple[int, int]) -> None:
        assert decode_image(encoded(Image.new("RGB", size), "PNG"), LIMITS).size == size


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Change, insert, remove or cut some bytes, mostly where the headers are."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 12)):
        at = chance.randrange(min(len(changed), 400) if chance.random() < 0.6 else len(changed))
        match chance.randrange(10):
            case 0:
                del changed[at : at + chance.randint(1, 20)]
            case 1:
                changed[at:at] = chance.randbytes(chance.randint(1, 8))
            case 2 if at > 20:
                del changed[at:]
            case _:
                changed[at] = chance.choice([0, 255, changed[at] ^ (1 << chance.randrange(8))])
        if len(changed) < 20:
            break
    return bytes(changed)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["JPEG", "progressive JPEG", "PNG", "palette PNG", "WEBP", "GIF"])
def test_damaged_files_give_an_image_or_an_image_error(kind: str) -> None:
    exif = oriented(6)
    exif[0x010F] = "a maker"
    exif.get_ifd(0x8769)[0x9003] = "2026:01:31 12:00:00"
    options: dict[str, object] = {"progressive": True} if kind == "progressive JPEG" else {}
    scene = picture().convert("P") if kind == "palette PNG" else picture()
    data = encoded(scene, kind.split()[-1], exif=exif, **options)
    chance, decoded, refused = random.Random(kind), 0, 0
    for _ in range(3000):
        sample = mutated(data, chance)
        try:
            image = decode_image(sample, LIMITS, min_side=chance.choice([0, 16]))
        except ImageError:
            refused += 1
        else:
            assert image.mode == "RGB"
            assert image.width * image.height <= LIMITS.max_pixels
            decoded += 1
    # Both happen, or the mutations test nothing.
    assert decoded
    assert refused


def test_decoding_in_threads_leaves_the_warnings_filters_as_they_were() -> None:
    before = list(warnings.filters)
    data = encoded(picture(), "JPEG")
    threads = [
        threading.Thread(target=lambda: [decode_image(data, LIMITS) for _ in range(50)], name=f"decode-{n}")
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before
