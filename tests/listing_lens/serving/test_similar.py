"""The order of similar items, by hand-computed cases and by what must hold of any."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listing_lens.search.queries import Filters, Hit
from listing_lens.serving.similar import Ranking, candidates_of, candidates_wanted, category_similarity, rank

SHOES = ("Fashion", "Shoes", "Sneakers")
RANKING = Ranking(price_factor=2.0, category_weight=0.25, pool=5)
_LEVELS = st.lists(st.sampled_from("abc"), max_size=4)


def hit(item_id: str, score: float, category: tuple[str, ...] = SHOES, price: int = 100) -> Hit:
    return Hit(item_id, score, "a title", category, price, "on_sale", "/a.jpg")


ITEM = hit("item", 1.0)


class TestCategorySimilarity:
    @pytest.mark.parametrize(
        ("other", "expected"),
        [
            (SHOES, 1.0),
            (("Fashion", "Shoes", "Boots"), 2 / 3),
            (("Fashion", "Shoes"), 2 / 3),
            (("Fashion", "Bags", "Sneakers"), 1 / 3),
            (("Home", "Shoes", "Sneakers"), 0.0),
            ((*SHOES, "Running"), 3 / 4),
            ((), 0.0),
        ],
    )
    def test_is_the_shared_share_of_the_longer_path(self, other: tuple[str, ...], expected: float) -> None:
        assert category_similarity(SHOES, other) == pytest.approx(expected)

    def test_of_two_without_a_category_is_nothing(self) -> None:
        assert category_similarity((), ()) == 0

    @given(_LEVELS, _LEVELS)
    def test_is_symmetric_and_within_bounds(self, one: list[str], other: list[str]) -> None:
        similarity = category_similarity(one, other)
        assert similarity == category_similarity(other, one)
        assert 0 <= similarity <= 1
        assert (similarity == 1) == (one == other != [])


class TestCandidates:
    def test_cost_up_to_a_factor_more_or_less(self) -> None:
        assert candidates_of(replace(ITEM, price=99), RANKING) == Filters(
            least_price=50, most_price=198, without=("item",)
        )

    def test_of_an_item_without_a_price_cost_anything(self) -> None:
        assert candidates_of(replace(ITEM, price=0), RANKING) == Filters(without=("item",))

    def test_cost_anything_where_that_is_switched_off(self) -> None:
        assert candidates_of(ITEM, replace(RANKING, price_factor=0)) == Filters(without=("item",))

    def test_are_as_many_as_are_shown_where_nothing_is_ranked_again(self) -> None:
        assert candidates_wanted(10, RANKING) == 50
        assert candidates_wanted(10, replace(RANKING, category_weight=0)) == 10


class TestRank:
    def test_weighs_the_category_against_the_similarity(self) -> None:
        near, kin, far = hit("near", 0.8, ("Home",)), hit("kin", 0.6), hit("far", 0.5, ("Fashion", "Bags", "Totes"))
        ranked = rank(ITEM, [near, kin, far], 3, RANKING)
        # 0.75 · 0.8 + 0.25 · 0 = 0.6; 0.75 · 0.6 + 0.25 · 1 = 0.7; 0.75 · 0.5 + 0.25 / 3 = 0.4583…
        assert [(one.hit.item_id, one.visual_rank, one.score) for one in ranked] == [
            ("kin", 2, pytest.approx(0.7)),
            ("near", 1, pytest.approx(0.6)),
            ("far", 3, pytest.approx(0.375 + 0.25 / 3)),
        ]
        assert [one.category_similarity for one in ranked] == [1.0, 0.0, pytest.approx(1 / 3)]

    def test_leaves_the_order_where_the_category_does_not_count(self) -> None:
        hits = [hit("a", 0.8, ("Home",)), hit("b", 0.6)]
        ranked = rank(ITEM, hits, 1, replace(RANKING, category_weight=0))
        assert [(one.hit, one.score, one.category_similarity) for one in ranked] == [(hits[0], 0.8, None)]

    @given(st.lists(st.tuples(st.floats(-1, 1), _LEVELS), max_size=20), st.integers(1, 25), st.floats(0, 1))
    def test_shows_the_best_of_what_was_found(
        self, found: list[tuple[float, list[str]]], k: int, weight: float
    ) -> None:
        hits = [
            hit(str(n), score, tuple(levels))
            for n, (score, levels) in enumerate(sorted(found, key=lambda one: -one[0]))
        ]
        ranked = rank(ITEM, hits, k, replace(RANKING, category_weight=weight))
        every = rank(ITEM, hits, len(hits) + 1, replace(RANKING, category_weight=weight))
        assert ranked == every[:k]
        assert sorted(one.hit.item_id for one in every) == sorted(one.item_id for one in hits)
        assert [one.score for one in every] == sorted((one.score for one in every), reverse=True)
        assert all(hits[one.visual_rank - 1] == one.hit for one in every)
