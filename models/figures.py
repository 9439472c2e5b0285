"""Figures that go with a run in the registry and into reports."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from models.metrics import CUTOFFS
from models.projection import Projection

_TITLES = {"ndcg": "nDCG@k", "precision": "Precision@k", "recall": "Recall@k"}


def explained_variance(projection: Projection) -> Figure:
    """Cumulative share of variance by dimensions kept, with the projection's own marked."""
    share = np.cumsum(projection.spectrum) / projection.spectrum.sum()
    kept = projection.dims
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.arange(1, len(share) + 1), share, color="#1f5fa8")
    axes.plot([kept, kept, 0], [0, share[kept - 1], share[kept - 1]], color="#c0392b", linewidth=1, linestyle="--")
    axes.annotate(
        f"{kept} dimensions keep {share[kept - 1]:.1%}",
        (kept, share[kept - 1]),
        # To the side with more room.
        xytext=(12 if kept < len(share) / 2 else -12, -18),
        textcoords="offset points",
        ha="left" if kept < len(share) / 2 else "right",
        color="#c0392b",
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


def metrics_by_k(means: Mapping[str, float], variants: Mapping[str, str]) -> Figure:
    """nDCG, precision and recall by k, a line a variant.

    Args:
        means: `variant/metric@k` → mean over sessions.
        variants: variant → its label.
    """
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, len(_TITLES)), _TITLES.items(), strict=True):
        for variant, label in variants.items():
            axes.plot(CUTOFFS, [means[f"{variant}/{metric}@{k}"] for k in CUTOFFS], marker="o", label=label)
        axes.set(title=title, xlabel="k", xticks=CUTOFFS, ylim=(0, 1))
        axes.grid(alpha=0.3)
    lines, labels = figure.axes[0].get_legend_handles_labels()
    # Below the plots: lines of several encoders leave no room in them.
    figure.legend(lines, labels, loc="outside lower center", ncols=min(len(labels), 3), frameon=False)
    return figure
