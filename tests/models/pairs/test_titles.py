"""Titles: which say nothing about the item, and which say the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.pairs.titles import is_message, title_key


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
