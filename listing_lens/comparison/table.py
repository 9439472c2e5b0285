"""Ranks the items that sessions showed by several encoders, and estimates how well each does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from listing_lens.comparison.records import HEADLINE, ComparisonRow, Estimate, Role, Scores, Variant
from listing_lens.errors import LensError
from models.encoders.cost import Cost
from models.intervals import bootstrap_mean, clusters_of
from models.metrics import METRICS, expected_at_random, ranked_metrics, session_metrics
from models.moments import Moments
from models.projection import Projection, fit_projection


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

    def rank(self, session: ComparedSession) -> dict[str, float]:
        """The session's metrics, when what it showed is ranked by this encoder."""
        return ranked_metrics(self.queries[session.session_id], self.items, session.shown, session.tapped)

    def projected_to(self, dims: int, photos: Sequence[NDArray[np.float32]]) -> Contender:
        """The same encoder with a projection that is fitted on embeddings (d,), to fewer dimensions if it must be."""
        rows = np.stack(photos)
        return self.projected(fit_projection(Moments.of(rows), min(dims, rows.shape[1], len(rows) - 1)))

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
    by_row = [[contender.rank(session) for session in sessions] for contender in contenders]
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
            unseen=_scores(results, sessions, seen=False),
            seen=_seen_scores(results, sessions),
            gain=None if contender.role == "parent" else _gain(results, parents.get(contender.variant), sessions),
        )
        for contender, results in zip(contenders, by_row, strict=True)
    ]
    orders: dict[Role, list[dict[str, float]]] = {
        "random": [expected_at_random(sum(session.tapped), len(session.shown)) for session in sessions],
        "logged": [session_metrics(np.array(session.tapped)) for session in sessions],
    }
    return (
        *rows,
        *(
            ComparisonRow(
                role=role, unseen=_scores(results, sessions, seen=False), seen=_seen_scores(results, sessions)
            )
            for role, results in orders.items()
        ),
    )


def means_of(rows: Sequence[ComparisonRow]) -> Iterator[tuple[str, float]]:
    """(label/metric, mean over the unseen sessions) of every row."""
    for row in rows:
        yield from ((f"{row.label}/{name}", estimate.mean) for name, estimate in row.unseen.metrics.items())


def require_several_products(groups: Sequence[Sequence[str]]) -> None:
    """Check the groups of unseen sessions. Raises LensError if there are none, or all are of one product."""
    if not groups:
        raise LensError("no session is unseen: there is nothing to compare encoders on")
    if clusters_of(groups).max() == 0:
        raise LensError(
            f"all {len(groups)} unseen sessions are of one product, which says nothing of others: "
            "compare on more sessions"
        )


def _scores(results: Sequence[Mapping[str, float]], sessions: Sequence[ComparedSession], *, seen: bool) -> Scores:
    """Of the sessions that are seen, or of those that are not."""
    chosen = [
        (result, session.groups) for result, session in zip(results, sessions, strict=True) if session.seen == seen
    ]
    clusters = clusters_of([groups for _, groups in chosen])
    metrics = {name: _estimate([result[name] for result, _ in chosen], clusters) for name in METRICS}
    return Scores(sessions=len(chosen), clusters=int(clusters.max()) + 1, metrics=metrics)


def _seen_scores(results: Sequence[Mapping[str, float]], sessions: Sequence[ComparedSession]) -> Scores | None:
    return _scores(results, sessions, seen=True) if any(session.seen for session in sessions) else None


def _gain(
    results: Sequence[Mapping[str, float]],
    parent: Sequence[Mapping[str, float]] | None,
    sessions: Sequence[ComparedSession],
) -> Estimate | None:
    if parent is None:
        return None
    differences = [
        (result[HEADLINE] - before[HEADLINE], session.groups)
        for result, before, session in zip(results, parent, sessions, strict=True)
        if not session.seen
    ]
    return _estimate([value for value, _ in differences], clusters_of([groups for _, groups in differences]))


def _estimate(values: Sequence[float], clusters: NDArray[np.intp]) -> Estimate:
    return Estimate(**asdict(bootstrap_mean(np.array(values), clusters)))


def _apply(projection: Projection, vectors: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    return dict(zip(vectors, projection.apply(np.stack(list(vectors.values()))), strict=True))
