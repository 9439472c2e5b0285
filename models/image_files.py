"""What of an image file decides its pixels. Nothing else is shown to a decoder, since nothing else is needed.

Pillow reads metadata as well, at a price that no limit on bytes or pixels covers: it joins a comment of many pieces in
quadratic time (hours for 30 MB), reads a megabyte of TIFF tags that point to one place into gigabytes, and decodes as many
scans of a JPEG as the file repeats.
"""

from __future__ import annotations

import re
import struct

# Segments, chunks, blocks: far more than any camera or shop writes, few enough to be walked in a moment.
_MAX_PARTS = 50_000
# Encoders write about ten, and each costs a pass over all pixels; libtiff has the same limit.
_MAX_SCANS = 100
# All of the tags that are kept; two numbers a row of pixels are the most of it.
_MAX_TAG_BYTES = 1 << 20
# A tile is decoded whole, however small the picture that it is part of.
_MAX_TILE_PIXELS = 4096 * 4096

# A marker that has a meaning of its own: neither a stuffed zero nor a restart.
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\x01\xd0-\xd8\xff])")
_JPEG_SCANS = re.compile(rb"\xff\xda")
_JPEG_SCAN, _JPEG_END, _JPEG_EXIF = 0xDA, 0xD9, 0xE1
# Application segments but JFIF's and Adobe's, which say what the colours are, and comments.
_JPEG_METADATA = frozenset(range(0xE1, 0xF0)) - {0xEE} | {0xFE}
_PNG_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_GIF_EXTENSION, _GIF_CONTROL = 0x21, 0xF9
# From the size of the picture to its strips, tiles, colours and compression (TIFF 6.0 and its supplements), by number.
_TIFF_PIXELS = frozenset(
    {
        256,
        257,
        258,
        259,
        262,
        266,
        273,
        274,
        277,
        278,
        279,
        284,
        292,
        293,
        317,
        320,
        322,
        323,
        324,
        325,
        332,
        338,
        339,
        347,
    }
    | {512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532}
)
# What else Pillow takes for a TIFF.
_ODD_TIFF = (b"II+\0", b"MM\0+", b"II\0*", b"MM*\0")
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_TIFF_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_ORIENTATION = 274


def pixels_only(data: bytes) -> tuple[bytes, int]:
    """The same picture without its metadata, and the EXIF orientation that they hold (1 when they hold none).

    Files of other formats than JPEG, PNG, GIF, TIFF and WebP stay as they are. Damaged ones go as far as they can be read;
    what that means is for the decoder to say. A TIFF keeps its orientation, which is part of the picture there.

    Raises:
        ValueError, struct.error: the file is made of more parts than a picture needs, or they contradict each other.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _gif(data), 1
    if data.startswith((b"II*\0", b"MM\0*")):
        return _tiff(data), 1
    if data.startswith(_ODD_TIFF):
        raise ValueError("a BigTIFF, or a TIFF of mixed byte order")
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return data, _webp_orientation(data)
    return data, 1


def _jpeg(data: bytes) -> tuple[bytes, int]:
    kept, orientation = [data[:2]], 1
    at = 2
    for _ in range(_MAX_PARTS):
        marker = _JPEG_MARKER.search(data, at)
        if marker is None:
            break
        code, start = marker[1][0], marker.end()
        if code == _JPEG_SCAN:
            _require_few_scans(data, marker.start())
            kept.append(data[marker.start() :])
            break
        at = start + int.from_bytes(data[start : start + 2])
        if code not in _JPEG_METADATA:
            kept.append(data[marker.start() : at])
        elif code == _JPEG_EXIF and data[start + 2 : start + 8] == b"Exif\0\0":
            orientation = _exif_orientation(data[start + 8 : at])
    else:
        raise _too_many_parts()
    return b"".join(kept), orientation


def _require_few_scans(data: bytes, at: int) -> None:
    # A bound that takes no time, and settles it for nearly all; behind the picture there may be others, or a film.
    if len(_JPEG_SCANS.findall(data, at)) <= _MAX_SCANS:
        return
    scans = 0
    while (marker := _JPEG_MARKER.search(data, at)) and marker[1][0] != _JPEG_END:
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
        scans += marker[1][0] == _JPEG_SCAN
        if scans > _MAX_SCANS:
            raise ValueError(f"more than {_MAX_SCANS} scans")


def _png(data: bytes) -> tuple[bytes, int]:
    kept, orientation = [data[:8]], 1
    at = 8
    for _ in range(_MAX_PARTS):
        if at + 8 > len(data):
            break
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if name in _PNG_PIXELS:
            kept.append(data[at:end])
        elif name == b"eXIf":
            orientation = _exif_orientation(data[at + 8 : at + 8 + length])
        if name == b"IEND":
            break
        at = end
    else:
        raise _too_many_parts()
    return b"".join(kept), orientation


def _gif(data: bytes) -> bytes:
    flags = data[10] if len(data) > 10 else 0
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    kept = [data[:at]]
    parts = 0
    while data[at : at + 1] == bytes([_GIF_EXTENSION]):
        end = at + 2
        while end < len(data) and data[end]:
            end += 1 + data[end]
            parts += 1
            if parts > _MAX_PARTS:
                raise _too_many_parts()
        end += 1
        if data[at + 1 : at + 2] == bytes([_GIF_CONTROL]):
            kept.append(data[at:end])
        at = end
        parts += 1
    kept.append(data[at:])
    return b"".join(kept)


def _tiff(data: bytes) -> bytes:
    order = "<" if data.startswith(b"II") else ">"
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    entries, values, tag_bytes = [], {}, 0
    for at in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, length = struct.unpack_from(f"{order}HHI", data, at)
        if tag in _TIFF_PIXELS:
            entries.append(data[at : at + 12])
            size = length * _TIFF_TYPE_BYTES.get(kind, 0)
            tag_bytes += size
            values[tag] = struct.unpack_from(f"{order}H" if kind == 3 else f"{order}I", data, at + 8)[0]
            if size > 4 and struct.unpack_from(f"{order}I", data, at + 8)[0] + size > len(data):
                raise ValueError(f"tag {tag} points outside of the file")
    if tag_bytes > _MAX_TAG_BYTES:
        raise ValueError(f"its tags claim {tag_bytes:,} bytes")
    if values.get(_TILE_WIDTH, 0) * values.get(_TILE_HEIGHT, 0) > _MAX_TILE_PIXELS:
        raise ValueError(f"tiles of {values[_TILE_WIDTH]}×{values[_TILE_HEIGHT]} pixels")
    # One directory, the last thing in the file, with none behind it; strips and tiles stay where they are.
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)
    filler = bytes(len(data) % 2)
    return data[:4] + struct.pack(f"{order}I", len(data + filler)) + data[8:] + filler + directory


def _webp_orientation(data: bytes) -> int:
    # libwebp passes over what it does not need, so the file may stay as it is.
    at = 12
    for _ in range(_MAX_PARTS):
        if at + 8 > len(data):
            return 1
        name, length = struct.unpack_from("<4sI", data, at)
        if name == b"EXIF":
            return _exif_orientation(data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0"))
        at += 8 + length + length % 2
    raise _too_many_parts()


def _exif_orientation(exif: bytes) -> int:
    """The orientation that the first directory of an EXIF block states; 1, upright, when it states none."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, at)
            if tag == _ORIENTATION:
                return int(struct.unpack_from(f"{order}I" if kind == 4 else f"{order}H", exif, at + 8)[0])
    except struct.error:
        # A directory that ends too soon says no more than this.
        pass
    return 1


def _too_many_parts() -> ValueError:
    return ValueError(f"more than {_MAX_PARTS:,} parts")
