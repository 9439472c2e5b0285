"""How the figures of an evaluation are named: those of searches by one photo plainly, others with the kind of query.

Kinds of queries are never averaged together: they differ in difficulty, and from day to day in number.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from listing_lens.lake.records import QueryKind
from listing_lens.lake.windows import Manifest

# As they are shown.
KIND_TITLES = {
    QueryKind.PHOTO: "by one photo",
    QueryKind.PHOTOS: "by several photos of one item",
    QueryKind.TEXT: "by words",
    QueryKind.PHOTO_AND_TEXT: "by photo and words",
}


def metric_prefix(kind: QueryKind) -> str:
    """What the names of a kind's metrics begin with, before `variant/metric@k`."""
    return "" if kind is QueryKind.PHOTO else f"{kind}/"


def evaluated_as(kind: QueryKind) -> str:
    """The name of the count of sessions of a kind that were evaluated."""
    return "evaluated" if kind is QueryKind.PHOTO else f"evaluated_{kind}"


def kinds_evaluated(counts: Mapping[str, int]) -> dict[QueryKind, int]:
    """How many sessions of each kind were evaluated, of those kinds of which any were; older counts are of photos alone."""
    return {kind: count for kind in QueryKind if (count := counts.get(evaluated_as(kind), 0))}


def means_of(means: Mapping[str, float], kind: QueryKind) -> dict[str, float]:
    """The means of one kind by `variant/metric@k`; empty if none of it was evaluated."""
    prefixes = {other: metric_prefix(other) for other in QueryKind if other is not QueryKind.PHOTO}
    if kind is QueryKind.PHOTO:
        return {name: mean for name, mean in means.items() if not name.startswith(tuple(prefixes.values()))}
    return {name.removeprefix(prefixes[kind]): mean for name, mean in means.items() if name.startswith(prefixes[kind])}


def mean_of(evaluations: Sequence[Manifest]) -> tuple[dict[QueryKind, int], dict[str, float]]:
    """The sessions of several windows by kind, and their means, by the names of an evaluation's metrics."""
    sessions: Counter[QueryKind] = Counter()
    sums: defaultdict[str, float] = defaultdict(float)
    for evaluation in evaluations:
        for kind, count in kinds_evaluated(evaluation.counts).items():
            sessions[kind] += count
            for name, mean in means_of(evaluation.parameters["metrics"], kind).items():
                sums[metric_prefix(kind) + name] += count * mean
    means = {
        metric_prefix(kind) + name: total / count
        for kind, count in sessions.items()
        for name, total in means_of(sums, kind).items()
    }
    return dict(sessions), means
