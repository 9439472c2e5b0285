"""The colours that products come in, and what sellers call them."""

from __future__ import annotations

from dataclasses import dataclass

RGB = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Colour:
    name: str
    rgb: RGB
    english: str
    japanese: str


_ALL = [
    Colour("white", (242, 240, 235), "white", "ホワイト"),
    Colour("black", (38, 38, 42), "black", "ブラック"),
    Colour("grey", (150, 152, 156), "grey", "グレー"),
    Colour("navy", (34, 46, 92), "navy", "ネイビー"),
    Colour("blue", (46, 108, 196), "blue", "ブルー"),
    Colour("sky", (134, 190, 226), "light blue", "水色"),
    Colour("teal", (28, 136, 136), "teal", "ティール"),
    Colour("green", (58, 142, 76), "green", "グリーン"),
    Colour("khaki", (122, 122, 78), "khaki", "カーキ"),
    Colour("mint", (164, 216, 190), "mint", "ミント"),
    Colour("yellow", (240, 198, 58), "yellow", "イエロー"),
    Colour("orange", (232, 124, 44), "orange", "オレンジ"),
    Colour("red", (204, 44, 48), "red", "レッド"),
    Colour("wine", (118, 32, 54), "burgundy", "ワインレッド"),
    Colour("pink", (240, 158, 178), "pink", "ピンク"),
    Colour("lavender", (178, 158, 214), "lavender", "ラベンダー"),
    Colour("purple", (108, 62, 148), "purple", "パープル"),
    Colour("brown", (124, 80, 50), "brown", "ブラウン"),
    Colour("camel", (194, 146, 96), "camel", "キャメル"),
    Colour("beige", (222, 204, 174), "beige", "ベージュ"),
]
COLOURS = {colour.name: colour for colour in _ALL}


def mix(first: RGB, second: RGB, share: float) -> RGB:
    """From the first colour (share 0) to the second (share 1)."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def darker(colour: RGB, share: float) -> RGB:
    return mix(colour, (12, 10, 24), share)


def lighter(colour: RGB, share: float) -> RGB:
    return mix(colour, (255, 254, 250), share)


def luminance(colour: RGB) -> float:
    """0 for black to 255 for white."""
    red, green, blue = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue


def distance(first: RGB, second: RGB) -> float:
    """Euclidean in RGB, 0 to about 442."""
    return float(sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) ** 0.5)
