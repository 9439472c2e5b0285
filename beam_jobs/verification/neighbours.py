"""Recall of the index's nearest neighbours, against exact search over all of the lake's vectors, in one pass over them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
from numpy.typing import NDArray

from beam_jobs.verification.config import EXAMPLES, SHOWN, Limits
from beam_jobs.verification.probes import Probed
from beam_jobs.verification.rows import Rows
from listing_lens.search.verification import Check
from models.projection_quality import neighbour_recall
from models.top_scores import merge_top, top_scores


@dataclass(frozen=True)
class Nearness:
    """How near the neighbours of each query are: inner products of the lake's vectors, of the rows seen so far.

    Attributes:
        exact: of the nearest ones, largest first, (q, SHOWN).
        found: of those that the index found, in its order, (q, SHOWN). −inf where none was seen.
    """

    exact: NDArray[np.float32]
    found: NDArray[np.float32]

    def merge(self, other: Nearness) -> Nearness:
        """Of the rows of both."""
        return Nearness(merge_top(self.exact, other.exact), np.maximum(self.found, other.found))


def nearness(rows: Rows, probed: Probed) -> Nearness:
    """The nearness of a batch's rows. By the lake's vectors even of what the index found: its own may be wrong."""
    scores = probed.queries @ rows.vectors.T
    found = np.full((len(probed.queries), SHOWN), -np.inf, np.float32)
    for row, item_id in enumerate(rows.with_vector):
        for query, rank in probed.places_of.get(item_id, ()):
            found[query, rank] = scores[query, row]
        if item_id in probed.query_of:
            scores[probed.query_of[item_id], row] = -np.inf
    return Nearness(top_scores(scores, SHOWN), found)


class MergeNearness(beam.CombineFn):
    """Nearnesses of batches → that of the table; None if it is empty."""

    def create_accumulator(self) -> Nearness | None:
        return None

    def add_input(self, merged: Nearness | None, more: Nearness) -> Nearness:
        return more if merged is None else merged.merge(more)

    def merge_accumulators(self, accumulators: Iterable[Nearness | None]) -> Nearness | None:
        merged: Nearness | None = None
        for one in self._present(accumulators):
            merged = self.add_input(merged, one)
        return merged

    def extract_output(self, merged: Nearness | None) -> Nearness | None:
        return merged

    @staticmethod
    def _present(accumulators: Iterable[Nearness | None]) -> Iterator[Nearness]:
        return (one for one in accumulators if one is not None)


def check_recall(near: Nearness | None, query_ids: list[str], limits: Limits) -> Check:
    """Whether the index finds enough of the nearest neighbours. Equally near ones, such as copies, are interchangeable."""
    # The others of a query: fewer than are shown, in a small table.
    k = 0 if near is None or not len(near.exact) else int(np.isfinite(near.exact).sum(axis=1).min())
    if near is None or not k:
        return Check(name="recall", passed=None, says="left out: there are no two searchable items to compare")
    shares = neighbour_recall(near.found, near.exact, k)
    recall = float(shares.mean())
    worst = [at for at in np.argsort(shares, kind="stable")[:EXAMPLES].tolist() if shares[at] < 1]
    return Check(
        name="recall",
        passed=recall >= limits.least_recall,
        says=f"of the {k} nearest neighbours of {len(shares)} items, {recall:.1%} are found",
        measured=recall,
        threshold=limits.least_recall,
        examples=tuple(f"{query_ids[at]} finds {round(shares[at] * k)} of {k}" for at in worst),
    )
