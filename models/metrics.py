"""Ranking metrics of one session: binary relevance, by the rank that a model gives to the items that were shown.

nDCG as in Järvelin and Kekäläinen (2002), with gains of 1 and a discount of log2(rank + 1); its ideal ranking puts all
relevant items first, so a session's nDCG@k is 1 when the first k are relevant, or all relevant ones come first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def relevance_by_rank(
    scores: NDArray[np.float32], relevant: Sequence[bool], item_ids: Sequence[str]
) -> NDArray[np.bool_]:
    """Reorder relevance by falling score.

    Equal scores are ordered by item id: any rule that knows the logged order would favour the model that logged it.

    Raises:
        ValueError: the three differ in length.
    """
    if not len(scores) == len(relevant) == len(item_ids):
        raise ValueError(
            f"{len(scores)} scores, {len(relevant)} labels and {len(item_ids)} item ids: must be equally many"
        )
    order = np.lexsort((np.asarray(item_ids), -np.asarray(scores)))
    return np.asarray(relevant, dtype=bool)[order]


def ndcg_at(k: int, ranked: NDArray[np.bool_]) -> float:
    """Normalised discounted cumulative gain of the first k. Raises ValueError when nothing is relevant."""
    discounts = 1.0 / np.log2(np.arange(2, k + 2))
    gain = discounts[: len(ranked[:k])][ranked[:k]].sum()
    return float(gain / discounts[: min(k, _relevant(ranked))].sum())


def precision_at(k: int, ranked: NDArray[np.bool_]) -> float:
    """Share of k positions that are relevant; fewer than k shown items leave the rest irrelevant."""
    _relevant(ranked)
    return float(ranked[:k].sum() / k)


def recall_at(k: int, ranked: NDArray[np.bool_]) -> float:
    """Share of the relevant items among the first k. Raises ValueError when nothing is relevant."""
    return float(ranked[:k].sum() / _relevant(ranked))


def session_metrics(ranked: NDArray[np.bool_]) -> dict[str, float]:
    """One session's metrics, by the names of `METRICS`."""
    return {f"{name}@{k}": metric(k, ranked) for name, metric in _BY_NAME.items() for k in METRIC_CUTOFFS}


def ranked_metrics(
    query: NDArray[np.float32],
    items: Mapping[str, NDArray[np.float32]],
    shown: Sequence[str],
    tapped: Sequence[bool],
) -> dict[str, float]:
    """One session's metrics when the shown items are ranked by their inner product with the query.

    Args:
        query: its vector (d,).
        items: the vectors (d,) of all items that were shown.
        shown: ids of items.
        tapped: whether each was tapped; at least one was.
    """
    scores = np.stack([items[item_id] for item_id in shown]) @ query
    return session_metrics(relevance_by_rank(scores, tapped, shown))


def expected_at_random(relevant: int, shown: int) -> dict[str, float]:
    """The exact expectation of one session's metrics over all orders of the shown items, by the names of `METRICS`.

    Raises:
        ValueError: nothing is relevant.
    """
    if not relevant:
        raise ValueError("no item is relevant: the metrics of this session are undefined")
    share = relevant / shown
    # Each rank holds a relevant item with the same chance, so gains add up.
    discounts = 1.0 / np.log2(np.arange(2, max(METRIC_CUTOFFS) + 2))
    found = {}
    for k in METRIC_CUTOFFS:
        ranks = min(k, shown)
        found[f"ndcg@{k}"] = float(share * discounts[:ranks].sum() / discounts[: min(k, relevant)].sum())
        found[f"precision@{k}"] = share * ranks / k
        found[f"recall@{k}"] = ranks / shown
    return {name: found[name] for name in METRICS}


def _relevant(ranked: NDArray[np.bool_]) -> int:
    count = int(ranked.sum())
    if not count:
        raise ValueError("no item is relevant: the metrics of this session are undefined")
    return count


METRIC_CUTOFFS = (1, 3, 5, 10)
_BY_NAME = {"ndcg": ndcg_at, "precision": precision_at, "recall": recall_at}
METRICS = tuple(f"{name}@{k}" for name in _BY_NAME for k in METRIC_CUTOFFS)
