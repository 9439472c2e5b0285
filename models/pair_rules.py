"""The rules by which image–title pairs are sampled for training: which titles say nothing, who is drawn, what is a twin.

Everything follows from the listing's own content and a salt, by hashes that are the same in every process and on every
machine: a sample drawn again is the same, and a larger one contains the smaller.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.images import ImageError

Split = Literal["train", "validation"]

_DRAW_BITS = 64
_BIN_BITS = 16
# Two images are near-duplicates when no more bits of their perceptual hashes differ than this.
NEAR_BITS = 3
# Of NEAR_BITS differing bits, at least one of so many bands of the hash is free: near-duplicates share a band.
_BANDS, _BAND_BITS = NEAR_BITS + 1, 16
_JPEG_SIDE = 65_500


# ---- titles ----------------------------------------------------------------------------------------------------------

# Who is addressed by a title that names no buyer: 「お客様専用」 is a sign for a shop, 「お子様専用」 is for children.
_NOBODY = "客奥王神嬢姫皆子母父"
# Titles of courtesy. 様 is for buyers; dolls and pets are ちゃん and くん too, and then own things (「リカちゃん専用ハウス」).
_BUYER = rf"(?<![{_NOBODY}])(?:様|さま)"
_SOMEBODY = "(?:さん|ちゃん|くん|君)"
_TO_BUYER = "(?:専用|まとめ|同梱|確認|予約|依頼|購入|支払|取り?置|リクエスト)"
_OPENING, _CLOSING = r"\[【〔《〈「『([<{", "】〕》〉」』)\\]>}"
_SIGNS = "★☆◆◇●○■□♡♥*※!"

# Looked for in a normalised title: NFKC, casefolded, white space collapsed.
_MESSAGES = re.compile(
    "|".join(
        (
            # さくら様専用, あおい様 おまとめ 3点, りん様ご確認用
            rf"{_BUYER}[ 、の]*[ごお御]?{_TO_BUYER}",
            # ○○さん専用, mikaちゃん専用ページ; but メルちゃん専用ベッド
            rf"{_SOMEBODY} ?[のご]?専用(?!\w)",
            # 専用出品, 専用ページ, 専用です; but iPhone専用ケース, 車専用, PS5専用スタンド
            r"専用(?:出品|商品|ページ|頁)|(?:^| )専用です",
            # 専用, 専用 スニーカー, 【専用】スニーカー, ★専用★
            rf"^専用(?:$| )|[{_OPENING}] ?専用 ?[{_CLOSING}]|[{_SIGNS}] ?専用 ?[{_SIGNS}]",
            r"(?:まとめ|まとめ買い|同梱|追加購入|値下げ|値引き)専用",
            # お取り置き, 取置; but お取り置き不可, 取り置き可
            r"取り?置き?+(?! ?(?:可|不可|でき|出来|は|しませ|なし|無し|禁止|ng|ok|対応))",
            # ご確認用, 即決用; but 後方確認用ミラー
            r"[ご御]確認用|^確認用(?:$| |ページ)|即決用",
            r"(?:売約|予約)済|(?:商談|交渉|取引)中",
            # Reserved for Anna, reserved to ken; but a sign that is to be sold
            r"\breserved (?:for|to|by)\b(?!.*\bsigns?\b)",
            # reserved, Reserved – Ken, RESERVED: Ken; but the brand's: Reserved dress
            r"^\W*reserved(?: listing)? ?(?:[-–—―:/|@!*.,~]|$)",
            # Sneakers (reserved), *RESERVED* sneakers, Sneakers - reserved; but all rights reserved
            rf"[{_OPENING}] ?reserved ?[{_CLOSING}]|[{_SIGNS}] ?reserved ?[{_SIGNS}]|[-–—―|] ?reserved\W*$",
            # On hold for Ken, Holding for Ken; but hair spray, strong hold for curls
            r"\bon hold\b|^\W*(?:hold|holding) for\b",
            # for @taro only, For Taro only; but radio, for parts only
            r"\bfor @\w|^\W*for [\w.-]+(?: [\w.-]+)? only\W*$|^@\w+\W*$",
            # Listing for Anna, private listing for Anna, custom order for Anna
            r"^\W*listing for\b|\b(?:private|personal|custom|special|exclusive) (?:listing|sale|order) (?:for|to)\b",
            r"\b(?:do not|don't|don’t|dont) (?:buy|purchase)\b",
        )
    )
)


def is_message(title: str) -> bool:
    """Whether a title says nothing about the item: a message to one buyer, in Japanese or English, or no words at all.

    Sellers who promised an item to somebody write so in its title, also before its status says reserved. A title that
    names what an item is made for (「iPhone専用ケース」) or how it is sold (「お取り置き不可」) stays.
    """
    plain = " ".join(_normalised(title).split())
    return not any(character.isalnum() for character in plain) or bool(_MESSAGES.search(plain))


def title_key(title: str) -> str:
    """What two titles have in common that differ only in case, width, punctuation, symbols or white space.

    Caseless matching as in the Unicode Standard, 3.13, D146, then letters and digits with single spaces in between.
    """
    return " ".join("".join(c if _is_of_word(c) else " " for c in _normalised(title)).split())


def _normalised(text: str) -> str:
    once = unicodedata.normalize("NFKC", unicodedata.normalize("NFD", text).casefold())
    return unicodedata.normalize("NFKC", once.casefold())


def _is_of_word(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character).startswith("M")


# ---- drawing ---------------------------------------------------------------------------------------------------------


def draw_number(salt: str, item_id: str) -> int:
    """An item's number in the draw: 64 bits, uniform, the same in every process. The lowest are drawn first."""
    return int.from_bytes(blake2b(f"{salt}\0{item_id}".encode(), digest_size=_DRAW_BITS // 8).digest())


def split_of(salt: str, group: str, validation_share: float) -> Split:
    """Which part a group of listings belongs to, as a whole."""
    # Another salt than the draw's: a small sample would otherwise be all of one part.
    return "validation" if draw_number(f"{salt}\0split", group) < validation_share * 2**_DRAW_BITS else "train"


def draw_bin(number: int) -> int:
    """The bin of a draw number, rising with it: what items are counted by, so that no process need hold all numbers.

    A bin is all numbers with the same length and the same 16 leading bits, as a floating-point number keeps them. So the
    first n items lie in bins of at most about n / 32,768 of them: most often one each where n is some thousands. And of any
    number of items, each doubling beyond 65,536 adds no more than 32,768 bins.
    """
    dropped = max(0, number.bit_length() - _BIN_BITS)
    return dropped << _BIN_BITS | number >> dropped


@dataclass(frozen=True)
class Taken:
    """The bins of a stratum that are drawn, rising, (n,) int64, and how many items there are up to each, (n,) int64."""

    bins: NDArray[np.int64]
    reached: NDArray[np.int64]

    @property
    def total(self) -> int:
        """How many items are drawn."""
        return int(self.reached[-1]) if len(self.reached) else 0

    def turn(self, number: int) -> int | None:
        """The smallest quota at which the item with this draw number is drawn; None when it is not.

        A sample in the order of its turns, and of the draw numbers within a turn, begins with every smaller sample.
        """
        wanted = draw_bin(number)
        place = int(np.searchsorted(self.bins, wanted))
        return int(self.reached[place]) if place < len(self.bins) and self.bins[place] == wanted else None


def take(counts: Mapping[int, int], quota: int) -> Taken:
    """The lowest bins that together hold no more items than the quota: all of it, or short of it by less than one bin.

    Args:
        counts: how many items of a stratum each bin holds.
        quota: how many to take at most.
    """
    bins = np.array(sorted(counts), np.int64)
    reached = np.cumsum(np.array([counts[place] for place in bins.tolist()], np.int64))
    taken = int(np.searchsorted(reached, quota, side="right"))
    return Taken(bins[:taken], reached[:taken])


def water_fill(counts: Sequence[int], wanted: int) -> int:
    """The largest quota q with Σ min(count, q) ≤ wanted; the largest count when all of them fit.

    Strata with fewer items than the quota give all that they have, and the others share the rest evenly.
    """
    left, strata = wanted, len(counts)
    for count in sorted(counts):
        if count * strata > left:
            return left // strata
        left -= count
        strata -= 1
    return max(counts, default=0)


# ---- images ----------------------------------------------------------------------------------------------------------


def as_jpeg(image: Image.Image, side: int) -> tuple[bytes, int]:
    """An RGB image as it is trained on: a JPEG whose shorter side is `side` pixels at most, and its `perceptual_hash`.

    Larger ones are scaled down (Lanczos), none is scaled up; a quality of 95 leaves hardly a trace of the compression.

    Raises:
        ImageError: an image so long and narrow that JPEG, which ends at 65,500 pixels, cannot hold it.
    """
    scale = side / min(image.size)
    if scale < 1:
        image = image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
        )
    if max(image.size) > _JPEG_SIDE:
        raise ImageError(f"{image.width}×{image.height} pixels are too long and narrow for a JPEG")
    data = io.BytesIO()
    image.save(data, "JPEG", quality=95)
    return data.getvalue(), perceptual_hash(image)


def perceptual_hash(image: Image.Image) -> int:
    """64 bits that change little when an image is scaled, recompressed or made a little brighter.

    The signs of its lowest frequencies against their median (pHash; Zauner 2010, as the `imagehash` package computes it).
    """
    return int.from_bytes(np.packbits(imagehash.phash(image).hash).tobytes())


def bands(image_hash: int) -> list[int]:
    """Keys of a 64-bit hash, (4,): two hashes that differ in no more than `NEAR_BITS` bits have at least one in common."""
    values = ((image_hash >> (_BAND_BITS * place)) & (2**_BAND_BITS - 1) for place in range(_BANDS))
    return [place << _BAND_BITS | value for place, value in enumerate(values)]


def near_before(hashes: NDArray[np.uint64]) -> Iterator[NDArray[np.intp]]:
    """For each of n hashes (n,), the places of the earlier ones that differ from it in at most `NEAR_BITS` bits."""
    for place, image_hash in enumerate(hashes):
        yield np.flatnonzero(np.bitwise_count(hashes[:place] ^ image_hash) <= NEAR_BITS)
