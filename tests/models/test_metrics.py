"""Ranking metrics against numbers worked out by hand, and against trec_eval on rankings that nobody chose.

The two definitions that libraries disagree on are pinned: the ideal of nDCG ranks all relevant items, also those beyond
k, and equal scores are ordered by item id, never by the logged order, which would favour the model that logged it.
"""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from models.metrics import (
    METRIC_CUTOFFS,
    METRICS,
    expected_at_random,
    ndcg_at,
    precision_at,
    recall_at,
    relevance_by_rank,
    session_metrics,
)


def ranked(pattern: str) -> np.ndarray:
    """ "10…" → relevance by rank."""
    return np.array([letter == "1" for letter in pattern], dtype=bool)


def discount(rank: int) -> float:
    return 1 / math.log2(rank + 1)


@pytest.mark.parametrize(
    ("pattern", "k", "ndcg", "precision", "recall"),
    [
        pytest.param("100", 1, 1, 1, 1, id="the one relevant first"),
        pytest.param("010", 1, 0, 0, 0, id="missed"),
        pytest.param("010", 3, discount(2), 1 / 3, 1, id="the one relevant second"),
        pytest.param(
            "10100",
            5,
            (1 + discount(3)) / (1 + discount(2)),
            2 / 5,
            1,
            id="two relevant, one place apart",
        ),
        pytest.param("11100", 1, 1, 1, 1 / 3, id="more relevant than k"),
        pytest.param("01011", 3, discount(2) / (1 + discount(2) + discount(3)), 1 / 3, 1 / 3, id="ideal goes beyond k"),
        pytest.param("11", 5, 1, 2 / 5, 1, id="fewer shown than k"),
        pytest.param("01", 10, discount(2), 1 / 10, 1, id="fewer shown than k, relevant last"),
        pytest.param("1", 1, 1, 1, 1, id="one shown"),
    ],
)
def test_by_hand(pattern: str, k: int, ndcg: float, precision: float, recall: float) -> None:
    assert ndcg_at(k, ranked(pattern)) == pytest.approx(ndcg)
    assert precision_at(k, ranked(pattern)) == pytest.approx(precision)
    assert recall_at(k, ranked(pattern)) == pytest.approx(recall)


@pytest.mark.parametrize("metric", [ndcg_at, precision_at, recall_at], ids=lambda metric: metric.__name__)
@pytest.mark.parametrize("pattern", ["", "000"], ids=["nothing shown", "nothing tapped"])
def test_nothing_relevant_is_undefined(metric: object, pattern: str) -> None:
    with pytest.raises(ValueError, match="no item is relevant"):
        metric(3, ranked(pattern))  # type: ignore[operator]


def test_a_session_has_every_metric_at_every_cutoff() -> None:
    found = session_metrics(ranked("0101"))
    assert tuple(found) == METRICS
    assert len(found) == 3 * len(METRIC_CUTOFFS)
    assert found["recall@3"] == 0.5


@given(data=st.data(), count=st.integers(1, 6))
def test_random_order_is_the_mean_over_all_orders(data: st.DataObject, count: int) -> None:
    relevant = data.draw(st.integers(1, count))
    orders = [
        session_metrics(np.array(order))
        for order in set(permutations([True] * relevant + [False] * (count - relevant)))
    ]
    found = expected_at_random(relevant, count)
    assert tuple(found) == METRICS
    assert found == pytest.approx({name: np.mean([order[name] for order in orders]) for name in METRICS})


def test_random_order_of_nothing_relevant_is_undefined() -> None:
    with pytest.raises(ValueError, match="no item is relevant"):
        expected_at_random(0, 5)


class TestRanking:
    def test_is_by_falling_score(self) -> None:
        order = relevance_by_rank(np.array([0.1, 0.9, 0.5], np.float32), [False, True, False], ["a", "b", "c"])
        assert order.tolist() == [True, False, False]

    def test_equal_scores_are_ordered_by_item(self) -> None:
        order = relevance_by_rank(np.array([0.5, 0.5, 0.5], np.float32), [True, False, False], ["c", "a", "b"])
        assert order.tolist() == [False, False, True]

    @given(data=st.data(), scores=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), min_size=1, max_size=12))
    def test_does_not_depend_on_the_logged_order(self, data: st.DataObject, scores: list[float]) -> None:
        relevant = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
        shown = list(zip(scores, relevant, [f"item-{n}" for n in range(len(scores))], strict=True))
        mixed = data.draw(st.permutations(shown))
        first, second = (
            relevance_by_rank(np.array([x[0] for x in y], np.float32), [x[1] for x in y], [x[2] for x in y])
            for y in (shown, mixed)
        )
        assert first.tolist() == second.tolist()

    def test_unequal_lengths_are_refused(self) -> None:
        with pytest.raises(ValueError, match="2 scores, 1 labels and 2 item ids"):
            relevance_by_rank(np.array([0.1, 0.2], np.float32), [True], ["a", "b"])


# Distinct scores: trec_eval breaks ties by its own rule. Few digits, because it keeps scores in single precision.
scores_of_a_session = st.lists(st.integers(-1000, 1000), unique=True, min_size=1, max_size=30)


@settings(max_examples=200)
@given(data=st.data(), scores=scores_of_a_session)
def test_agrees_with_trec_eval(data: st.DataObject, scores: list[int]) -> None:
    count = len(scores)
    relevant = data.draw(st.lists(st.booleans(), min_size=count, max_size=count).filter(any))
    items = [f"item-{n}" for n in range(count)]
    cutoffs = ",".join(map(str, METRIC_CUTOFFS))
    evaluator = pytrec_eval.RelevanceEvaluator(
        {"session": {item: int(tapped) for item, tapped in zip(items, relevant, strict=True)}},
        {f"ndcg_cut.{cutoffs}", f"P.{cutoffs}", f"recall.{cutoffs}"},
    )
    run = {"session": {item: score / 1000 for item, score in zip(items, scores, strict=True)}}
    reference = evaluator.evaluate(run)["session"]
    ours = session_metrics(relevance_by_rank(np.array(scores, np.float32) / 1000, relevant, items))
    names = {"ndcg": "ndcg_cut", "precision": "P", "recall": "recall"}
    theirs = {f"{name}@{k}": reference[f"{their}_{k}"] for name, their in names.items() for k in METRIC_CUTOFFS}
    assert ours == pytest.approx(theirs, abs=1e-6)
