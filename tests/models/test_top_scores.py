"""The best scores of a table that is read in batches are those of the whole, however it is cut and in whatever order."""

from __future__ import annotations

from functools import reduce
from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from models.top_scores import merge_top, top_scores

SCORES = st.tuples(st.integers(0, 4), st.integers(0, 30)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(-1, 1, width=32))
)


def brute_force(scores: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """Everything sorted, then cut, then padded."""
    best = np.sort(scores, axis=1)[:, ::-1][:, :k]
    return np.pad(best, ((0, 0), (0, k - best.shape[1])), constant_values=-np.inf)


@given(scores=SCORES, k=st.integers(1, 12))
def test_the_top_is_what_sorting_everything_gives(scores: NDArray[np.float32], k: int) -> None:
    np.testing.assert_array_equal(top_scores(scores, k), brute_force(scores, k))


@given(
    scores=SCORES,
    k=st.integers(1, 12),
    cuts=st.lists(st.integers(0, 30), max_size=6),
    chance=st.randoms(use_true_random=False),
)
def test_batches_merge_to_the_top_of_all_in_any_order(
    scores: NDArray[np.float32], k: int, cuts: list[int], chance: Random
) -> None:
    batches = np.split(scores, sorted(min(cut, scores.shape[1]) for cut in cuts), axis=1)
    chance.shuffle(batches)
    merged = reduce(merge_top, (top_scores(batch, k) for batch in batches))
    np.testing.assert_array_equal(merged, brute_force(scores, k))


def test_equal_scores_are_each_kept() -> None:
    scores = np.array([[0.5, 1.0, 1.0, 0.5]], np.float32)
    assert top_scores(scores, 3).tolist() == [[1.0, 1.0, 0.5]]


def test_scores_are_not_reordered_in_place() -> None:
    scores = np.array([[0.1, 0.9, 0.5]], np.float32)
    before = scores.copy()
    top_scores(scores, 2)
    np.testing.assert_array_equal(scores, before)
