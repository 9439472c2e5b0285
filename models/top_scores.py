"""The best scores of each query over a table that is read batch by batch: no more than k of them are kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def top_scores(scores: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """The k largest of each row of scores (q, n), largest first: (q, k). Rows of fewer than k end in −inf."""
    queries, candidates = scores.shape
    kept = np.full((queries, k), -np.inf, np.float32)
    taken = min(k, candidates)
    if taken:
        # Sorting all of them would take ten times as long as finding the k largest.
        best = np.partition(scores, candidates - taken, axis=1)[:, candidates - taken :]
        kept[:, :taken] = np.sort(best, axis=1)[:, ::-1]
    return kept


def merge_top(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of two `top_scores` (q, k) of different items, those of all of them: (q, k). In any order, merges give the same."""
    return top_scores(np.concatenate([one, other], axis=1), one.shape[1])
