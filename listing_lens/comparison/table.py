"""Ranks the items that sessions showed by several encoders, and estimates how well each does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from listing_lens.comparison.records import HEADLINE, ComparisonRow, Estimate, Role, Scores, Variant
from listing_lens.errors import LensError
from models.encoders.cost import Cost
from models.intervals import Interval, bootstrap_mean, clusters_of
from models.metrics import METRICS, expected_at_random, relevance_by_rank, session_metrics
from models.projection import Projection


@dataclass(frozen=True)
class ComparedSession:
    """What a search showed, from the first position on, and what was tapped.

    Attributes:
        session_id: its name.
        shown: ids of items.
        tapped: whether each was tapped; at least one was.
        groups: the products that were tapped.
        seen: whether something of it was learnt from, as far as is known.
    """

    session_id: str
    shown: tuple[str, ...]
    tapped: tuple[bool, ...]
    groups: tuple[str, ...]
    seen: bool = False


@dataclass(frozen=True)
class Contender:
    """What an encoder, alone or projected, makes of the sessions' photos.

    Attributes:
        role, encoder_id, encoder_source, variant: say which it is.
        queries: embeddings (d,) of the searches' photos, by session.
        items: embeddings (d,) of the shown items' photos, by item.
        cost: of the encoder.
    """

    role: Role
    encoder_id: str
    encoder_source: str
    variant: Variant
    queries: Mapping[str, NDArray[np.float32]]
    items: Mapping[str, NDArray[np.float32]]
    cost: Cost | None = None

    def projected(self, projection: Projection) -> Contender:
        """The same encoder with a projection."""
        return Contender(
            self.role,
            self.encoder_id,
            self.encoder_source,
            "projected",
            _apply(projection, self.queries),
            _apply(projection, self.items),
            self.cost,
        )


def compare(contenders: Sequence[Contender], sessions: Sequence[ComparedSession]) -> tuple[ComparisonRow, ...]:
    """A row per contender in their order, then random and logged order. Gains are over the parent, if there is one.

    Raises:
        LensError: no session is unseen, or all that are belong to one product.
    """
    require_several_products([session.groups for session in sessions if not session.seen])
    by_row = [[_ranked(contender, session) for session in sessions] for contender in contenders]
    parents = {
        contender.variant: results
        for contender, results in zip(contenders, by_row, strict=True)
        if contender.role == "parent"
    }
    rows = [
        ComparisonRow(
            role=contender.role,
            encoder_id=contender.encoder_id,
            encoder_source=contender.encoder_source,
            variant=contender.variant,
            dims=len(next(iter(contender.items.values()))),
            cost=contender.cost,
            gain=None if contender.role == "parent" else _gain(results, parents.get(contender.variant), sessions),
            **_scores(results, sessions),
        )
        for contender, results in zip(contenders, by_row, strict=True)
    ]
    in_random_order = [expected_at_random(sum(session.tapped), len(session.shown)) for session in sessions]
    as_logged = [session_metrics(np.array(session.tapped)) for session in sessions]
    return (
        *rows,
        ComparisonRow(role="random", **_scores(in_random_order, sessions)),
        ComparisonRow(role="logged", **_scores(as_logged, sessions)),
    )


def require_several_products(groups: Sequence[Sequence[str]]) -> None:
    """Check the groups of unseen sessions. Raises LensError if there are none, or all are of one product."""
    if not groups:
        raise LensError("no session is unseen: there is nothing to compare encoders on")
    if clusters_of(groups).max() == 0:
        raise LensError(
            f"all {len(groups)} unseen sessions are of one product, which says nothing of others: "
            "compare on more sessions"
        )


def _ranked(contender: Contender, session: ComparedSession) -> dict[str, float]:
    scores = np.stack([contender.items[item_id] for item_id in session.shown]) @ contender.queries[session.session_id]
    return session_metrics(relevance_by_rank(scores, session.tapped, session.shown))


def _scores(results: Sequence[Mapping[str, float]], sessions: Sequence[ComparedSession]) -> dict[str, Scores]:
    """Of the unseen sessions, and of the seen ones if there are any."""
    found = {}
    for name, seen in (("unseen", False), ("seen", True)):
        places = [place for place, session in enumerate(sessions) if session.seen == seen]
        if places:
            clusters = clusters_of([sessions[place].groups for place in places])
            metrics = {
                metric: _estimate(bootstrap_mean(np.array([results[place][metric] for place in places]), clusters))
                for metric in METRICS
            }
            found[name] = Scores(sessions=len(places), clusters=int(clusters.max()) + 1, metrics=metrics)
    return found


def _gain(
    results: Sequence[Mapping[str, float]],
    parent: Sequence[Mapping[str, float]] | None,
    sessions: Sequence[ComparedSession],
) -> Estimate | None:
    if parent is None:
        return None
    places = [place for place, session in enumerate(sessions) if not session.seen]
    differences = np.array([results[place][HEADLINE] - parent[place][HEADLINE] for place in places])
    return _estimate(bootstrap_mean(differences, clusters_of([sessions[place].groups for place in places])))


def _estimate(interval: Interval) -> Estimate:
    return Estimate(mean=interval.mean, low=interval.low, high=interval.high)


def _apply(projection: Projection, vectors: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    return dict(zip(vectors, projection.apply(np.stack(list(vectors.values()))), strict=True))


def means_of(rows: Sequence[ComparisonRow]) -> Iterator[tuple[str, float]]:
    """(label/metric, mean over the unseen sessions) of every row."""
    for row in rows:
        yield from ((f"{row.label}/{name}", estimate.mean) for name, estimate in row.unseen.metrics.items())
