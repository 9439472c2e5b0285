"""Decoding what sellers upload: phones turn photos by EXIF, shops export every mode, and some files are no images at all.

A wrong pixel here is a wrong vector for ever, so colours are compared with known ones. Damaged files are in
test_images_fuzz.py.
"""

from __future__ import annotations

import io
import struct
import threading
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

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


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(size: tuple[int, int], depth: int, colours: int, row: bytes, *chunks: bytes) -> bytes:
    """A PNG of equal rows; `colours` is 0 for grey, 2 for RGB, 3 for a palette, 4 and 6 for both with alpha."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colours, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress((b"\0" + row) * size[1]))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + png_chunk(b"IEND", b"")


def png_header(width: int, height: int) -> bytes:
    """A PNG of a hundred bytes that claims any size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        png_chunk(*chunk) for chunk in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    )


def gif(canvas: tuple[int, int], frame: tuple[int, int, int, int], control: bytes = b"") -> bytes:
    """A GIF of one red frame (left, top, width, height) on a canvas whose background colour is green."""
    red = encoded(Image.new("P", frame[2:], 0), "GIF")
    at = red.index(b"\x2c\0\0\0\0")
    local_palette = 3 << (red[at + 9] & 7) + 1 if red[at + 9] & 0x80 else 0
    palette = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 0])
    head = b"GIF89a" + struct.pack("<HHBBB", *canvas, 0x81, 1, 0) + palette
    return head + control + b"\x2c" + struct.pack("<HHHHB", *frame, 0) + red[at + 10 + local_palette :]


def tiff_with(data: bytes, *changed: tuple[int, int, int, int]) -> bytes:
    """A little-endian TIFF with some tags (number, type, count, value) changed or added."""
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    entries = {}
    for at in range(start + 2, start + 2 + 12 * count, 12):
        entry = struct.unpack_from("<HHII", data, at)
        entries[entry[0]] = entry
    entries |= {entry[0]: entry for entry in changed}
    directory = b"".join(struct.pack("<HHII", *entries[tag]) for tag in sorted(entries))
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + struct.pack("<H", len(entries)) + directory + bytes(4)


def with_adobe(jpeg: bytes, transform: int | None) -> bytes:
    """The JPEG with Adobe's segment stating this transform of colours, or without the segment."""
    at = jpeg.index(b"\xff\xee")
    rest = jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4]) :]
    segment = b"" if transform is None else b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])
    return jpeg[:at] + segment + rest


class TestOrientation:
    @pytest.mark.parametrize("orientation", STORED)
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "HEIF", "TIFF", "MPO"])
    def test_is_upright_after(self, orientation: int, kind: str) -> None:
        options = {"quality": 95} if kind in ("JPEG", "MPO", "WEBP") else {}
        # From bytes, HEIF's encoder also makes the property that turns the picture, as phones do.
        data = encoded(stored(orientation, picture()), kind, exif=oriented(orientation).tobytes(), **options)
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

    @pytest.mark.parametrize("transform", [None, 0])
    def test_cmyk_jpeg_has_its_colours_with_or_without_adobes_word(self, transform: int | None) -> None:
        data = with_adobe(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95), transform)
        assert decode_image(data, LIMITS).getpixel((8, 8)) == (255, 0, 0)

    def test_ycck_jpeg_has_its_colours(self) -> None:
        # As Photoshop writes it: the ink's negative is taken for RGB and stored as YCbCr. No cyan, all magenta and yellow.
        luma, blue, red = Image.new("RGB", (16, 16), (0, 255, 255)).convert("YCbCr").split()
        # Pillow writes CMYK as negatives.
        planes = [plane.point(lambda value: 255 - value) for plane in (luma, blue, red)]
        data = encoded(Image.merge("CMYK", [*planes, Image.new("L", (16, 16), 0)]), "JPEG", quality=95)
        red, green, blue = decode_image(with_adobe(data, 2), LIMITS).getpixel((8, 8))
        assert red >= 253
        assert max(green, blue) <= 2

    @pytest.mark.parametrize(
        ("data", "colour"),
        [
            pytest.param(png((9, 9), 16, 0, struct.pack(">H", 777) * 9), (3, 3, 3), id="grey"),
            pytest.param(
                png((9, 9), 16, 0, struct.pack(">H", 777) * 9, png_chunk(b"tRNS", struct.pack(">H", 777))),
                (255, 255, 255),
                id="grey, clear",
            ),
            pytest.param(
                png((9, 9), 16, 0, struct.pack(">H", 777) * 9, png_chunk(b"tRNS", struct.pack(">H", 778))),
                (3, 3, 3),
                id="grey, another is clear",
            ),
            pytest.param(png((9, 9), 16, 2, struct.pack(">3H", 19789, 2570, 51400) * 9), (77, 10, 200), id="RGB"),
            pytest.param(png((9, 9), 16, 4, struct.pack(">2H", 19789, 65535) * 9), (77, 77, 77), id="grey and alpha"),
            pytest.param(png((9, 9), 16, 6, struct.pack(">4H", 9, 9, 9, 0) * 9), (255, 255, 255), id="RGBA, clear"),
            pytest.param(
                tiff_with(encoded(Image.new("I;16", (9, 9), 77 * 257), "TIFF"), (262, 3, 1, 0)),
                (178, 178, 178),
                id="TIFF, 0 is white",
            ),
        ],
    )
    def test_16_bits_keep_their_upper_eight(self, data: bytes, colour: tuple[int, ...]) -> None:
        assert decode_image(data, LIMITS).getpixel((4, 4)) == colour

    def test_a_palettes_transparency_is_by_entry(self) -> None:
        palette = png_chunk(b"PLTE", bytes([0, 0, 0, 200, 0, 0])) + png_chunk(b"tRNS", bytes([255, 51]))
        decoded = decode_image(png((9, 9), 8, 3, bytes([0, 1] * 4 + [0]), palette), LIMITS)
        assert (decoded.getpixel((0, 0)), decoded.getpixel((1, 0))) == ((0, 0, 0), (244, 204, 204))

    @pytest.mark.parametrize(
        ("control", "inside"), [(b"", (255, 0, 0)), (b"!\xf9\4\1\0\0\0\0", (255, 255, 255))], ids=["opaque", "clear"]
    )
    def test_what_a_gifs_frame_does_not_cover_is_white(self, control: bytes, inside: tuple[int, ...]) -> None:
        decoded = decode_image(gif((20, 20), (8, 8, 10, 10), control), LIMITS)
        assert decoded.size == (20, 20)
        assert (decoded.getpixel((2, 2)), decoded.getpixel((12, 12))) == ((255, 255, 255), inside)

    def test_a_gifs_frame_beyond_its_canvas_is_shown_whole(self) -> None:
        decoded = decode_image(gif((20, 20), (15, 15, 10, 10)), LIMITS)
        assert decoded.size == (25, 25)
        assert (decoded.getpixel((2, 2)), decoded.getpixel((24, 24))) == ((255, 255, 255), (255, 0, 0))

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_colour_profiles_change_nothing(self, kind: str) -> None:
        options: dict[str, object] = {"lossless": True} if kind == "WEBP" else {}
        plain = decode_image(encoded(picture(), kind, **options), LIMITS)
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
        for icc_profile in (profile, b"no profile at all"):
            data = encoded(picture(), kind, icc_profile=icc_profile, **options)
            assert difference(decode_image(data, LIMITS), plain) == 0

    @pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "HEIF", "MPO", "TIFF"])
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

    @pytest.mark.parametrize("size", [(4000, 48), (48, 4000), (4000, 150), (257, 256)], ids=str)
    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    def test_a_long_and_narrow_picture_keeps_its_shape(self, size: tuple[int, int], mode: str) -> None:
        data = encoded(picture(*size).convert(mode), "JPEG", quality=90)
        decoded = decode_image(data, LIMITS, min_side=64)
        assert decoded.mode == "RGB"
        assert min(decoded.size) >= min(128, *size)
        assert decoded.width / decoded.height == pytest.approx(size[0] / size[1], rel=0.02)

    @pytest.mark.parametrize("side", [1, 33, 64, 320, 5000])
    def test_never_falls_below_twice_the_side_that_is_needed(self, side: int) -> None:
        decoded = decode_image(encoded(picture(640, 480), "JPEG"), LIMITS, min_side=side)
        assert min(decoded.size) >= min(2 * side, 480)


class TestCostly:
    """Small files that cost much: none of it is paid."""

    def test_metadata_are_never_read(self) -> None:
        # Each of them alone takes Pillow minutes or gigabytes.
        comments = b"!\xfe" + (b"\xff" + b"a" * 255) * 20_000 + b"\0"
        profile = png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1_000_000)))
        shot = encoded(picture(), "PNG")
        pieces = b"\xff\xe1\0\x0cExif\0\0more" * 40_000
        photo = encoded(picture(), "JPEG")
        limits = ImageLimits(max_bytes=40_000_000, max_pixels=2_000_000)
        for data in (
            gif((20, 20), (0, 0, 20, 20), comments),
            shot[:33] + profile * 20_000 + shot[33:],
            photo[:2] + pieces + photo[2:],
            tiff_with(encoded(picture(), "TIFF"), *((40_000 + n, 7, 10_000, 0) for n in range(20_000))),
        ):
            tracemalloc.start()
            assert decode_image(data, limits).mode == "RGB"
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak < 10_000_000 + len(data)

    def test_a_file_of_countless_parts_is_refused(self) -> None:
        photo, shot = encoded(picture(), "JPEG"), encoded(picture(), "PNG")
        film = encoded(picture(), "WEBP", save_all=True, append_images=[picture()])
        limits = ImageLimits(max_bytes=40_000_000, max_pixels=2_000_000)
        for data in (
            photo[:2] + b"\xff\xfe\0\2" * 60_000 + photo[2:],
            shot[:33] + png_chunk(b"IDAT", b"") * 60_000 + shot[33:],
            gif((20, 20), (0, 0, 20, 20), b"!\xfe\1a\0" * 60_000),
            film + b"ABCD\0\0\0\0" * 60_000,
        ):
            with pytest.raises(ImageError, match="more than 50,000 parts"):
                decode_image(data, limits)

    def test_a_jpeg_of_many_scans_is_refused(self) -> None:
        data = encoded(picture(), "JPEG", progressive=True)
        last = data[data.rindex(b"\xff\xda") : -2]
        assert decode_image(data[:-2] + last * 50 + data[-2:], LIMITS).size == (96, 64)
        with pytest.raises(ImageError, match="more than 100 scans"):
            decode_image(data[:-2] + last * 100 + data[-2:], LIMITS)

    def test_a_film_behind_a_photo_is_not_taken_for_scans(self) -> None:
        film = b"\xff\xda" * 1000
        assert difference(decode_image(encoded(picture(), "JPEG", quality=95) + film, LIMITS), picture()) < 4

    def test_a_tiff_that_lies_about_itself_is_refused(self) -> None:
        data = encoded(picture(), "TIFF")
        for tags, reason in (
            ([(322, 4, 1, 16_000), (323, 4, 1, 16_000)], "tiles of 16000×16000 pixels"),
            ([(320, 1, 2_000_000, 0)], "tags claim 2,0.* bytes|points outside"),
            ([(320, 3, 768, len(data) - 10)], "tag 320 points outside of the file"),
        ):
            with pytest.raises(ImageError, match=reason):
                decode_image(tiff_with(data, *tags), LIMITS)

    @pytest.mark.parametrize("order", ["II+\0", "MM\0+", "II\0*", "MM*\0"], ids=repr)
    def test_a_tiff_that_would_be_read_with_its_metadata_is_refused(self, order: str) -> None:
        with pytest.raises(ImageError, match="BigTIFF"):
            decode_image(order.encode() + encoded(picture(), "TIFF")[4:], LIMITS)

    @pytest.mark.parametrize("mode", ["I", "F"])
    def test_pixels_without_a_known_white_are_refused(self, mode: str) -> None:
        with pytest.raises(ImageError, match="pixels of 32 bits"):
            decode_image(encoded(Image.new(mode, (9, 9)), "TIFF"), LIMITS)


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

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "HEIF", "GIF", "BMP", "TIFF"])
    @pytest.mark.parametrize("share", [0.3, 0.9])
    def test_when_cut_off(self, kind: str, share: float) -> None:
        data = encoded(picture(), kind)
        with pytest.raises(ImageError):
            decode_image(data[: int(share * len(data))], LIMITS)

    def test_when_too_long_and_narrow(self) -> None:
        # A few hundred bytes, of which an encoder that scales the shorter side would make hundreds of megabytes.
        for size, refused in (((8, 801), True), ((801, 8), True), ((8, 800), False)):
            data = io.BytesIO()
            Image.new("RGB", size).save(data, "PNG")
            if refused:
                with pytest.raises(ImageError, match="pixels are too long and narrow to show anything"):
                    decode_image(data.getvalue(), ImageLimits(10**6, 10**6))
            else:
                assert decode_image(data.getvalue(), ImageLimits(10**6, 10**6)).size == size

    def test_not_at_the_very_limits(self) -> None:
        data = encoded(picture(100, 50), "PNG")
        assert decode_image(data, ImageLimits(len(data), 5000)).size == (100, 50)

    @pytest.mark.parametrize("size", [(8, 8), (9, 500)], ids=str)
    def test_not_when_just_large_enough(self, size: tuple[int, int]) -> None:
        assert decode_image(encoded(Image.new("RGB", size), "PNG"), LIMITS).size == size


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
