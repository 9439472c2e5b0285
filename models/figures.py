"""Figures that go with a run in the registry and into reports."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models.metrics import METRIC_CUTOFFS
from models.projection import Projection

_BLUE, _RED, _GREY = "#1f5fa8", "#c0392b", "#6b7280"
_TITLES = {"ndcg": "nDCG@k", "precision": "Precision@k", "recall": "Recall@k"}


def explained_variance(projection: Projection) -> Figure:
    """Cumulative share of variance by dimensions kept, with the projection's own marked."""
    share = np.cumsum(projection.spectrum) / projection.spectrum.sum()
    kept = projection.dims
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.arange(1, len(share) + 1), share, color=_BLUE)
    axes.plot([kept, kept, 0], [0, share[kept - 1], share[kept - 1]], color=_RED, linewidth=1, linestyle="--")
    axes.annotate(
        f"{kept} dimensions keep {share[kept - 1]:.1%}",
        (kept, share[kept - 1]),
        # To the side with more room.
        xytext=(12 if kept < len(share) / 2 else -12, -18),
        textcoords="offset points",
        ha="left" if kept < len(share) / 2 else "right",
        color=_RED,
    )
    axes.set(
        xlabel="dimensions kept",
        ylabel="share of variance",
        xlim=(0, len(share)),
        ylim=(0, 1.02),
        title=f"Explained variance, fitted on {projection.rows:,} embeddings",
    )
    axes.grid(alpha=0.3)
    return figure


def recall_by_dims(
    recall: Mapping[int, Mapping[str, float]],
    before: Mapping[int, Mapping[str, float]] | None = None,
    centred: float | None = None,
) -> Figure:
    """Recall against exact search with the whole embeddings, by dimensions, a line a k.

    Args:
        recall: dimensions → `recall@k` → mean over queries.
        before: the same of the projection before it, drawn dashed.
        centred: recall@10 of all dimensions about the mean, drawn as a line.
    """
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(next(iter(recall.values()))):
        colour = f"C{number}"
        axes.plot(list(recall), [at[name] for at in recall.values()], marker="o", color=colour, label=name)
        if before:
            values = [at[name] for at in before.values()]
            axes.plot(
                list(before), values, marker="o", mfc="white", linestyle="--", color=colour, label=f"{name}, before"
            )
    if centred is not None:
        axes.axhline(centred, color=_GREY, linestyle=":", label=f"all dimensions @10: {centred:.3f}")
    _by_dims(axes, {*recall, *(before or ())})
    axes.set(ylabel="recall", ylim=(0, 1.02), title="Recall against exact search with the whole embeddings")
    _legend_below(figure)
    return figure


def ndcg_by_dims(ndcg: Mapping[int, float], whole: float) -> Figure:
    """nDCG@5 by the projection's dimensions, the last of them the indexed ones, with that of the whole embeddings as a line."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(list(ndcg), list(ndcg.values()), marker="o", color=_BLUE, label="projection")
    axes.axhline(whole, color=_GREY, linestyle="--", label=f"encoder alone: {whole:.3f}")
    _by_dims(axes, set(ndcg))
    # From 0 the differences that matter would be flat.
    lowest, highest = min(*ndcg.values(), whole), max(*ndcg.values(), whole)
    room = max(0.1 * (highest - lowest), 0.01)
    axes.set(ylabel="nDCG@5", ylim=(lowest - room, highest + room), title="nDCG@5 by dimension")
    _legend_below(figure)
    return figure


def metrics_by_k(means: Mapping[str, float], variants: Mapping[str, str]) -> Figure:
    """nDCG, precision and recall by k, a line a variant.

    Args:
        means: `variant/metric@k` → mean over sessions.
        variants: variant → its label.
    """
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, len(_TITLES)), _TITLES.items(), strict=True):
        for variant, label in variants.items():
            axes.plot(
                METRIC_CUTOFFS, [means[f"{variant}/{metric}@{k}"] for k in METRIC_CUTOFFS], marker="o", label=label
            )
        axes.set(title=title, xlabel="k", xticks=METRIC_CUTOFFS, ylim=(0, 1))
        axes.grid(alpha=0.3)
    _legend_below(figure)
    return figure


def _legend_below(figure: Figure) -> None:
    """One legend for all plots, below them: wherever within them it lay, lines could run through it."""
    lines, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=min(len(labels), 3), frameon=False)


def _by_dims(axes: Axes, dims: Collection[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(dims), [str(value) for value in sorted(dims)])
    axes.minorticks_off()
    axes.set_xlabel("dimensions")
    axes.grid(alpha=0.3)
