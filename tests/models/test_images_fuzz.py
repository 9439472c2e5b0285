"""Thousands of damaged files of every kind that sellers upload: each is an upright RGB image or an `ImageError`.

Files are damaged as transfers, editors and strangers damage them: bits flip, ends go missing, lengths lie, chunks are lost,
doubled or come from another file. The damage is drawn from a seed, which a failure names along with the file.
"""

from __future__ import annotations

import io
import itertools
import random
import re
import struct
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from models.images import ImageError, ImageLimits, decode_image

LIMITS = ImageLimits(max_bytes=1_000_000, max_pixels=2_000_000)
SAMPLES = 1000
SEED = 2026


def scene() -> Image.Image:
    y, x = np.mgrid[:48, :64]
    return Image.fromarray(np.dstack([4 * x, 5 * y, (x * y) % 256]).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def exif() -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = 6
    block[0x010F] = "a maker"
    block.get_ifd(0x8769)[0x9003] = "2026:01:31 12:00:00"
    return block


def interlaced_png() -> bytes:
    """8 by 8 pixels of grey in Adam7's seven passes."""
    passes = ((1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4))
    rows = b"".join((b"\0" + bytes(range(0, 30 * width, 30))) * height for width, height in passes)
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        png_chunk(name, body) for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


FRAMES = [scene().rotate(90 * turn) for turn in range(3)]
MANY: dict[str, object] = {"save_all": True, "append_images": FRAMES[1:], "duration": 40}
FILES = {
    "baseline JPEG": encoded(scene(), "JPEG", exif=exif(), icc_profile=b"a profile", comment=b"a comment"),
    "progressive JPEG": encoded(scene(), "JPEG", progressive=True, exif=exif()),
    "grey JPEG with restarts": encoded(scene().convert("L"), "JPEG", restart_marker_blocks=2),
    "CMYK JPEG": encoded(scene().convert("CMYK"), "JPEG"),
    "MPO": encoded(scene(), "MPO", save_all=True, append_images=FRAMES[1:]),
    "RGB PNG": encoded(scene(), "PNG", exif=exif(), icc_profile=b"a profile"),
    "palette PNG": encoded(scene().convert("P"), "PNG", transparency=3),
    "16-bit PNG": encoded(Image.fromarray(np.arange(3072, dtype=np.uint16).reshape(48, 64) * 21), "PNG"),
    "interlaced PNG": interlaced_png(),
    "animated PNG": encoded(scene(), "PNG", **MANY),
    "lossy WebP": encoded(scene(), "WEBP", exif=exif(), icc_profile=b"a profile"),
    "lossless WebP": encoded(scene().convert("RGBA"), "WEBP", lossless=True),
    "animated WebP": encoded(scene(), "WEBP", **MANY),
    "HEIC": encoded(scene(), "HEIF", exif=exif()),
    "HEIC of several": encoded(scene(), "HEIF", save_all=True, append_images=FRAMES[1:]),
    "GIF": encoded(scene().convert("P"), "GIF", transparency=3, comment=b"a comment"),
    "animated GIF": encoded(scene(), "GIF", **MANY),
    "raw TIFF": encoded(scene(), "TIFF", exif=exif()),
    "LZW TIFF": encoded(scene(), "TIFF", compression="tiff_lzw"),
    "JPEG TIFF": encoded(scene(), "TIFF", compression="jpeg"),
    "16-bit TIFF": encoded(Image.fromarray(np.arange(3072, dtype=np.uint16).reshape(48, 64) * 21), "TIFF"),
    "BMP": encoded(scene(), "BMP"),
    "palette BMP": encoded(scene().convert("P"), "BMP"),
}
# Where a part of a file begins: a marker of JPEG, a chunk of PNG or WebP, a block of GIF. TIFF's and BMP's lie anywhere.
_PARTS = re.compile(
    rb"\xff[\xc0-\xfe]|....(?:IHDR|PLTE|tRNS|eXIf|iCCP|acTL|fcTL|fdAT|IDAT|IEND)"
    rb"|VP8[ LX]....|ALPH....|ANIM....|ANMF....|EXIF....|ICCP....|\x21[\xf9\xff\xfe]|\x2c\0\0",
    re.DOTALL,
)


def parts(data: bytes) -> list[bytes]:
    """The file in pieces, as its format is made of pieces."""
    cuts = [0, *(match.start() for match in _PARTS.finditer(data, 2)), len(data)]
    if len(cuts) < 5:
        cuts = [0, *range(8, len(data), 12), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(cuts)]


def damaged(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """The file after one to four accidents."""
    for _ in range(chance.randint(1, 4)):
        changed = bytearray(data)
        # Headers are short, and decide the most.
        at = chance.randrange(min(len(data), 200) if chance.random() < 0.6 else len(data))
        match chance.randrange(8):
            case 0 | 1:
                for _ in range(chance.randint(1, 8)):
                    bit = chance.randrange(min(len(data), 200) if chance.random() < 0.5 else len(data))
                    changed[bit] ^= 1 << chance.randrange(8)
            case 2:
                del changed[at:]
            case 3:
                width = chance.choice([1, 2, 4])
                number = chance.choice([0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, len(data)])
                changed[at : at + width] = (number % 256**width).to_bytes(width, chance.choice(["big", "little"]))
            case 4 | 5:
                pieces = parts(data)
                piece = chance.randrange(len(pieces))
                match chance.randrange(3):
                    case 0:
                        del pieces[piece]
                    case 1:
                        pieces[piece:piece] = [pieces[piece]] * chance.choice([1, 2, 200])
                    case _:
                        other = chance.randrange(len(pieces))
                        pieces[piece], pieces[other] = pieces[other], pieces[piece]
                changed = bytearray(b"".join(pieces))
            case 6:
                foreign = parts(chance.choice(others))
                start = chance.randrange(len(foreign))
                changed[at : at + chance.choice([0, 10, 100])] = b"".join(foreign[start : start + chance.randint(1, 4)])
            case _:
                changed[at:at] = chance.randbytes(chance.randint(1, 40))
        data = bytes(changed[: LIMITS.max_bytes]) or b"\0"
    # A wrong checksum would end most damage to a PNG before it begins.
    return with_checksums(data) if data.startswith(b"\x89PNG") and chance.random() < 0.8 else data


def with_checksums(png: bytes) -> bytes:
    """The same chunks, each with the checksum of what it holds now."""
    mended, at = [png[:8]], 8
    while at + 12 <= len(png):
        length = int.from_bytes(png[at : at + 4])
        if at + 12 + length > len(png):
            break
        mended.append(png_chunk(png[at + 4 : at + 8], png[at + 8 : at + 8 + length]))
        at += 12 + length
    return b"".join(mended) + png[at:]


def outcome(data: bytes, min_side: int) -> str:
    """What became of a file; anything but a sound image and an `ImageError` is raised."""
    try:
        image = decode_image(data, LIMITS, min_side=min_side)
    except ImageError:
        return "refused"
    assert image.mode == "RGB"
    assert image.width * image.height <= LIMITS.max_pixels
    # All of its pixels are there.
    assert len(image.tobytes()) == 3 * image.width * image.height
    return "decoded"


@pytest.mark.filterwarnings("error", "ignore::PIL.Image.DecompressionBombWarning", "ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", FILES)
def test_damaged_files_give_an_image_or_an_image_error(kind: str) -> None:
    assert outcome(FILES[kind], min_side=0) == "decoded"
    others = [data for name, data in FILES.items() if name != kind]
    outcomes: Counter[str] = Counter()
    for sample in range(SAMPLES):
        seed = f"{SEED} {kind} {sample}"
        chance = random.Random(seed)
        data = damaged(FILES[kind], others, chance)
        try:
            outcomes[outcome(data, min_side=chance.choice([0, 16]))] += 1
        except BaseException as err:
            raise AssertionError(f"random.Random({seed!r}): {len(data)} bytes, {data[:64]!r}…") from err
    # Both happen, or the damage tests nothing.
    assert min(outcomes["decoded"], outcomes["refused"]) > SAMPLES / 50, outcomes
