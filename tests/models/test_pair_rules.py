"""The rules of sampling pairs: which titles say nothing, a draw that is nested and repeatable, images that are twins."""

from __future__ import annotations

import io
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import scene

from models.images import ImageError
from models.pair_rules import (
    NEAR_BITS,
    as_jpeg,
    bands,
    draw_bin,
    draw_number,
    is_message,
    near_before,
    perceptual_hash,
    split_of,
    take,
    title_key,
    water_fill,
)

numbers = st.integers(0, 2**64 - 1)


class TestMessages:
    @pytest.mark.parametrize(
        "title",
        [
            "さくら様専用",
            "KEI様 専用 ありがとうございます",
            "ＫＥＩ様　専用",
            "さくらさま専用",
            "○○さん専用",
            "みかちゃん専用",
            "りんくん専用ページ",
            "あおい様 おまとめ 3点",
            "りん様ご確認用",
            "mika様 リクエスト 2点",
            "専用",
            "専用出品",
            "専用ページ",
            "専用 スニーカー",
            "【専用】スニーカー",
            "★専用★ バッグ",
            "同梱専用",
            "お取り置き",
            "取り置き",
            "取置き品",
            "ご確認用",
            "即決用",
            "予約済み スニーカー",
            "Reserved for Anna",
            "reserved – Ken",
            "RESERVED: Ken",
            "RESERVED",
            "Sneakers (reserved)",
            "*RESERVED* sneakers",
            "Sneakers - reserved",
            "for @taro only",
            "For Taro only",
            "on hold for Ken",
            "Holding for Ken",
            "Listing for Anna",
            "Private listing for Leo",
            "Custom order for Yui",
            "Please do not buy",
            "@taro",
        ],
    )
    def test_to_a_buyer_are_left_out(self, title: str) -> None:
        assert is_message(title)

    @pytest.mark.parametrize(
        "title",
        [
            "iPhone専用ケース",
            "iPhone15専用 ケース",
            "車専用 カーテン",
            "PS5専用スタンド",
            "専用ケース付き カメラ",
            "お客様専用スリッパ",
            "お子様専用食器",
            "メルちゃん専用ベッド",
            "赤ちゃん専用綿棒",
            "リカちゃん まとめ売り",
            "3点まとめ売り",
            "お取り置き不可 スニーカー",
            "取り置き可 バッグ",
            "後方確認用ミラー",
            "予約特典 缶バッジ",
            "王様のブランチ",
            "リザーブ ワイン",
            "Reserve wine 2015",
            "Reserved dress size M",
            "Reserved for Bride & Groom wooden sign",
            "All rights reserved DVD",
            "Hair spray, strong hold for curls",
            "Radio, for parts only",
            "Case for iPhone 12 only, black",
            "2",
        ],
    )
    def test_what_names_an_item_stays(self, title: str) -> None:
        assert not is_message(title)

    @pytest.mark.parametrize("title", ["", "  ", "！！！", "★☆", "🎀🎀", "---"])
    def test_no_words_are_left_out_too(self, title: str) -> None:
        assert is_message(title)


class TestTitleKeys:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("Red Mug", "  red   mug!! "),
            ("ＲＥＤ　ＭＵＧ", "red mug"),
            ("ﾅｲｷ ｽﾆｰｶｰ", "ナイキ　スニーカー"),
            ("【美品】ナイキ・バッグ", "美品 ナイキ バッグ"),
            ("STRASSE", "Straße"),
            ("カ\N{COMBINING KATAKANA-HIRAGANA VOICED SOUND MARK}", "ガ"),
        ],
    )
    def test_are_the_same_for_what_reads_the_same(self, one: str, other: str) -> None:
        assert title_key(one) == title_key(other)

    def test_differ_where_titles_do(self) -> None:
        assert len({title_key(title) for title in ("red mug", "redmug", "red mug 2", "ハハ", "パパ", "ババ")}) == 6

    @given(st.text())
    def test_of_a_key_are_the_key(self, title: str) -> None:
        assert title_key(title_key(title)) == title_key(title)


class TestDraws:
    def test_are_the_same_in_another_process(self) -> None:
        code = "from models.pair_rules import draw_number; print(draw_number('salt', 'm1'))"
        other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert int(other.stdout) == draw_number("salt", "m1") != draw_number("pepper", "m1")

    def test_are_spread_evenly(self) -> None:
        eighths = Counter(draw_number("salt", f"m{n}") >> 61 for n in range(8000))
        assert set(eighths) == set(range(8))
        # Five standard deviations of a binomial count.
        assert all(abs(count - 1000) < 150 for count in eighths.values())

    @given(numbers, numbers)
    def test_bins_rise_with_the_numbers(self, one: int, other: int) -> None:
        assert (draw_bin(one) <= draw_bin(other)) if one <= other else (draw_bin(one) >= draw_bin(other))

    @given(numbers)
    def test_a_bin_is_narrow(self, number: int) -> None:
        wider = number + number // 2**15 + 1
        assert wider >= 2**64 or draw_bin(wider) > draw_bin(number)

    @given(st.sets(numbers, max_size=60), st.integers(0, 70), st.integers(0, 70))
    def test_a_larger_one_contains_the_smaller(self, drawn: set[int], quota: int, more: int) -> None:
        counts = Counter(map(draw_bin, drawn))
        small, large = take(counts, quota), take(counts, quota + more)
        turns = {number: small.turn(number) for number in drawn}
        assert sum(turn is not None for turn in turns.values()) == small.total <= quota
        for number, turn in turns.items():
            if turn is not None:
                assert large.turn(number) == turn <= quota

    @given(st.sets(numbers, min_size=1, max_size=60), st.integers(0, 70))
    def test_take_the_lowest_up_to_the_quota_short_of_it_by_less_than_a_bin(self, drawn: set[int], quota: int) -> None:
        counts = Counter(map(draw_bin, drawn))
        taken = take(counts, quota)
        assert [n for n in sorted(drawn) if taken.turn(n) is not None] == sorted(drawn)[: taken.total]
        if taken.total < len(drawn):
            assert taken.total + counts[draw_bin(sorted(drawn)[taken.total])] > quota

    def test_of_some_items_are_exact_and_of_many_nearly(self) -> None:
        numbers = [draw_number("salt", f"m{n}") for n in range(20_000)]
        few = Counter(map(draw_bin, numbers[:100]))
        assert [take(few, quota).total for quota in range(101)] == list(range(101))
        many = Counter(map(draw_bin, numbers))
        assert all(quota - 5 < take(many, quota).total <= quota for quota in range(100, 20_000, 997))


class TestWaterFilling:
    @pytest.mark.parametrize(
        ("counts", "wanted", "quota"),
        [([10, 2, 5], 9, 3), ([10, 2, 5], 12, 5), ([10, 2, 5], 11, 4), ([10, 2, 5], 100, 10), ([4], 3, 3), ([], 5, 0)],
    )
    def test_by_hand(self, counts: list[int], wanted: int, quota: int) -> None:
        assert water_fill(counts, wanted) == quota

    @given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 200))
    def test_is_the_largest_quota_that_fits(self, counts: list[int], wanted: int) -> None:
        quota = water_fill(counts, wanted)
        assert sum(min(count, quota) for count in counts) <= wanted
        assert quota == max(counts) or sum(min(count, quota + 1) for count in counts) > wanted


class TestSplits:
    def test_keep_to_the_share_and_contain_those_of_a_smaller_share(self) -> None:
        groups = [f"product p{n}" for n in range(4000)]
        tenth = {group for group in groups if split_of("salt", group, 0.1) == "validation"}
        # Five standard deviations of a binomial count.
        assert abs(len(tenth) - 400) < 95
        assert tenth < {group for group in groups if split_of("salt", group, 0.2) == "validation"}

    def test_do_not_follow_the_draw(self) -> None:
        items = sorted((f"m{n}" for n in range(4000)), key=lambda item: draw_number("salt", item))
        first = sum(split_of("salt", item, 0.5) == "validation" for item in items[:400])
        assert 150 < first < 250


class TestTwins:
    def test_hash_nearly_the_same_when_scaled_and_recompressed(self) -> None:
        image, other = (Image.open(io.BytesIO(data)) for data in (scene(1), scene(1, side=120, quality=75)))
        assert (perceptual_hash(image) ^ perceptual_hash(other)).bit_count() <= NEAR_BITS

    def test_other_images_hash_otherwise(self) -> None:
        hashes = [perceptual_hash(Image.open(io.BytesIO(scene(seed)))) for seed in range(12)]
        assert min((one ^ other).bit_count() for one in hashes for other in hashes if one is not other) > NEAR_BITS
        assert all(0 <= one < 2**64 for one in hashes)

    @given(numbers, st.sets(st.integers(0, 63), max_size=NEAR_BITS))
    def test_share_a_band(self, image_hash: int, flipped: set[int]) -> None:
        other = image_hash ^ sum(1 << bit for bit in flipped)
        assert set(bands(image_hash)) & set(bands(other))

    @given(st.lists(st.integers(0, 2**10 - 1), max_size=12))
    def test_are_found_among_the_earlier_ones(self, hashes: list[int]) -> None:
        expected = [
            [place for place in range(later) if (hashes[place] ^ hashes[later]).bit_count() <= NEAR_BITS]
            for later in range(len(hashes))
        ]
        assert [places.tolist() for places in near_before(np.array(hashes, np.uint64))] == expected


class TestImagesToTrainOn:
    @pytest.mark.parametrize(
        ("size", "stored"),
        [((600, 400), (120, 80)), ((400, 600), (80, 120)), ((60, 90), (60, 90)), ((80, 80), (80, 80))],
    )
    def test_are_scaled_down_to_the_side_never_up(self, size: tuple[int, int], stored: tuple[int, int]) -> None:
        jpeg, _ = as_jpeg(Image.new("RGB", size, "teal"), 80)
        with Image.open(io.BytesIO(jpeg)) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", stored)

    def test_keep_their_pixels(self) -> None:
        image = Image.open(io.BytesIO(scene(3)))
        jpeg, image_hash = as_jpeg(image, 288)
        stored = np.asarray(Image.open(io.BytesIO(jpeg)), float)
        assert np.abs(stored - np.asarray(image, float)).mean() < 2
        assert image_hash == perceptual_hash(image)

    def test_that_no_jpeg_can_hold_are_refused(self) -> None:
        with pytest.raises(ImageError, match="too long and narrow"):
            as_jpeg(Image.new("RGB", (70_000, 8)), 80)
