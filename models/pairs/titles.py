"""Titles of listings: which say nothing about the item, and which say the same."""

from __future__ import annotations

import re
import unicodedata

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
