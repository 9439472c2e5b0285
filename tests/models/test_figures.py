"""Figures: what is drawn is what was given, and every line is named."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from tiny import correlated

from models import figures
from models.moments import Moments
from models.projection import fit_projection

RECALL = {8: {"recall@1": 0.5, "recall@10": 0.6}, 16: {"recall@1": 0.7, "recall@10": 0.8}}
BEFORE = {8: {"recall@1": 0.4, "recall@10": 0.5}}


def lines(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    """What the legend names, and the points of each."""
    drawn = {line.get_label(): line for line in figure.axes[0].get_lines()}
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    return {name: (list(drawn[name].get_xdata()), list(drawn[name].get_ydata())) for name in named}


def test_recall_by_dims_draws_both_projections() -> None:
    assert lines(figures.recall_by_dims(RECALL)) == {
        "recall@1": ([8, 16], [0.5, 0.7]),
        "recall@10": ([8, 16], [0.6, 0.8]),
    }
    assert lines(figures.recall_by_dims(RECALL, BEFORE)) == {
        "recall@1": ([8, 16], [0.5, 0.7]),
        "recall@1, before": ([8], [0.4]),
        "recall@10": ([8, 16], [0.6, 0.8]),
        "recall@10, before": ([8], [0.5]),
    }
    assert lines(figures.recall_by_dims(RECALL, centred=0.75))["all dimensions @10: 0.750"][1] == [0.75, 0.75]


def test_ndcg_by_dims_has_the_whole_embedding_as_a_line_in_view() -> None:
    figure = figures.ndcg_by_dims({8: 0.25, 16: 0.5}, 0.75)
    drawn = lines(figure)
    assert drawn["projection"] == ([8, 16], [0.25, 0.5])
    assert drawn["encoder alone: 0.750"][1] == [0.75, 0.75]
    lowest, highest = figure.axes[0].get_ylim()
    assert lowest < 0.25 < 0.75 < highest
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["8", "16"]


@pytest.mark.parametrize("dims", [2, 10])
def test_explained_variance_marks_what_is_kept(dims: int) -> None:
    projection = fit_projection(Moments.of(correlated(200, 12)), dims)
    figure = figures.explained_variance(projection)
    curve = figure.axes[0].get_lines()[0].get_ydata()
    np.testing.assert_allclose(curve[-1], 1)
    assert f"{dims} dimensions keep {curve[dims - 1]:.1%}" in [text.get_text() for text in figure.axes[0].texts]


def test_they_can_be_drawn_of_one_point() -> None:
    for figure in (figures.recall_by_dims({8: {"recall@1": 0.0}}), figures.ndcg_by_dims({8: 0.0}, 0.0)):
        figure.savefig(png := io.BytesIO(), format="png")
        assert png.getvalue().startswith(b"\x89PNG")
