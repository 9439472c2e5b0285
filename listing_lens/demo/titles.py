"""What sellers write: titles in Japanese and English, and prices."""

from __future__ import annotations

import numpy as np

from listing_lens.demo.chance import pick, weighted
from listing_lens.demo.palette import COLOURS
from listing_lens.demo.product import Product
from listing_lens.demo.taxonomy import KINDS
from listing_lens.demo.words import ENGLISH, JAPANESE

# What a condition is called, and what it does to the price.
CONDITIONS = {"new": 1.25, "unused": 1.1, "good": 0.85, "used": 0.6}
_JAPANESE_CONDITION = {
    "new": ("新品", "新品タグ付き"),
    "unused": ("未使用", "未使用に近い"),
    "good": ("美品", "良品"),
    "used": ("中古", "used", ""),
}
_ENGLISH_CONDITION = {
    "new": ("brand new", "new with tags"),
    "unused": ("unused", "like new"),
    "good": ("good condition", "great condition"),
    "used": ("used", "pre-owned", ""),
}
_JAPANESE_PATTERN = {
    "stripes": "ボーダー",
    "pinstripes": "ストライプ",
    "dots": "ドット柄",
    "checks": "チェック柄",
    "floral": "花柄",
    "camouflage": "迷彩柄",
    "diamonds": "アーガイル",
    "waves": "波柄",
    "hearts": "ハート柄",
}
_ENGLISH_PATTERN = {
    "stripes": "striped",
    "pinstripes": "pinstripe",
    "dots": "polka dot",
    "checks": "checked",
    "floral": "floral",
    "camouflage": "camo",
    "diamonds": "argyle",
    "waves": "wave print",
    "hearts": "heart print",
}
_JAPANESE_PRAISE = ("送料無料", "即購入OK", "値下げ", "最終値下げ", "早い者勝ち", "匿名配送", "人気", "レア")
_ENGLISH_PRAISE = ("free shipping", "rare", "must go", "price drop")
_BUYERS = ("さくら", "mika", "ゆうき", "taro", "ひなた", "KEI", "あおい", "なつみ", "りん", "haru", "そら", "こうへい")
_ENGLISH_BUYERS = ("Anna", "Ken", "Mika", "Leo", "Yui", "Sam")


def write_title(product: Product, condition: str, english: bool, rng: np.random.Generator) -> str:
    """A seller's title for a product; two sellers of the same one hardly ever write the same."""
    kind, colour = KINDS[product.kind], COLOURS[product.colour]
    brand = product.brand if rng.random() < 0.65 else ""
    size = pick(rng, kind.sizes) if kind.sizes and rng.random() < 0.7 else ""
    named = rng.random() < 0.8
    if english:
        pattern = _ENGLISH_PATTERN.get(product.pattern or "", "")
        words = [brand, colour.english if named else "", pattern, pick(rng, ENGLISH[product.kind])]
        tail = [f"size {size}" if size else "", pick(rng, _ENGLISH_CONDITION[condition])]
        if rng.random() < 0.12:
            tail.append(pick(rng, _ENGLISH_PRAISE))
        title = " ".join(word for word in [*words, *tail] if word)
        return title[0].upper() + title[1:]
    pattern = _JAPANESE_PATTERN.get(product.pattern or "", "") if rng.random() < 0.8 else ""
    state = pick(rng, _JAPANESE_CONDITION[condition])
    state = f"【{state}】" if state and rng.random() < 0.5 else state
    words = [state, brand, pattern, pick(rng, JAPANESE[product.kind]), colour.japanese if named else "", size]
    if rng.random() < 0.25:
        words.append(pick(rng, _JAPANESE_PRAISE))
    if state and not state.startswith("【") and rng.random() < 0.5:
        words = [*words[1:], state]
    return " ".join(word for word in words if word)


def write_reserved_title(english: bool, rng: np.random.Generator) -> str:
    """A message to one buyer in place of a title: it says nothing about the product."""
    if english:
        return f"Reserved for {pick(rng, _ENGLISH_BUYERS)}"
    return (
        f"{pick(rng, _BUYERS)}様専用{weighted(rng, ('', ' おまとめ', ' 2点', ' ありがとうございます'), (6, 1, 1, 1))}"
    )


def base_price(kind: str, rng: np.random.Generator) -> float:
    """What a product of a kind is worth, in yen, before its condition and its seller."""
    low, high = KINDS[kind].price
    return float(low * (high / low) ** (rng.beta(2, 3)))


def ask_price(worth: float, rng: np.random.Generator) -> int:
    """A price as sellers write it: 1,980 or 2,000, at least 300 yen."""
    amount = max(300, round(worth * float(rng.uniform(0.8, 1.2)) / 100) * 100)
    return amount - int(weighted(rng, (0, 20, 1), (6, 3, 1))) if amount > 500 else amount
