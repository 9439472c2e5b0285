"""Image files that are broken in the ways that uploads are."""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache

BREAKAGES = ("truncated", "not_an_image", "one_pixel", "huge", "empty")

_PAGE = b"<!DOCTYPE html>\n<html><head><title>502 Bad Gateway</title></head><body>Try again later.</body></html>\n"
_HUGE_SIDE = 30_000


def break_image(breakage: str, photo: bytes) -> bytes:
    """A broken file in place of a good JPEG photo."""
    if breakage == "truncated":
        return photo[: len(photo) * 2 // 5]
    if breakage == "not_an_image":
        return _PAGE
    if breakage == "one_pixel":
        return _png(1, zlib.compress(b"\x00\x80"))
    if breakage == "huge":
        return _huge()
    if breakage == "empty":
        return b""
    raise ValueError(f"unknown breakage {breakage!r}")


@lru_cache(maxsize=1)
def _huge() -> bytes:
    """A small file that unpacks to 30,000 × 30,000 pixels."""
    packer = zlib.compressobj(1)
    row = bytes(1 + _HUGE_SIDE)
    return _png(_HUGE_SIDE, b"".join([*(packer.compress(row) for _ in range(_HUGE_SIDE)), packer.flush()]))


def _png(side: int, packed: bytes) -> bytes:
    """A square grey PNG of already compressed rows."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
