"""Assessing: recall is what searching by hand gives, an item counts once, and a projection is judged beside the one before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import FIRST, SECOND, correlated, items_of, land_marketplace, listing, put_items

from beam_jobs import assess_projection, embed_listings
from beam_jobs import fit_projection as fit_job
from beam_jobs.assess_projection import assess
from listing_lens.errors import LensError
from listing_lens.lake.fits import Assessment, Fit, fit_path, load_assessment, load_fit, save_projection
from listing_lens.lake.windows import Lake
from models.embedder import EmbedderCard
from models.moments import Moments
from models.projection import Projection, fit_projection
from models.projection_quality import nearest, neighbour_recall, principal_angles, scores, variance_held


def unit_rows(rows: int, seed: int) -> np.ndarray:
    vectors = correlated(rows, 48, mean=0.05, seed=seed)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def left_by_a_fit(lake: Lake, name: str, rows: np.ndarray, dims: int) -> Projection:
    """What the job fit_projection leaves in the lake."""
    projection = fit_projection(Moments.of(rows), dims)
    save_projection(lake, projection)
    card = EmbedderCard(
        encoder_source="/models/small",
        encoder_id="small-12345678",
        encoder_dims=rows.shape[1],
        projection_id=projection.projection_id,
        dims=dims,
    )
    fit = Fit(card=card, rows=len(rows), version=1, explained_variance=0.5)
    lake.write_bytes(fit_path(lake, name), fit.model_dump_json().encode())
    return projection


@pytest.fixture
def items(lake: Lake) -> np.ndarray:
    """300 items, of which the last hundred have an older version too. Returns their newest embeddings."""
    newest, older = unit_rows(300, 1), unit_rows(100, 2)
    for window, vectors, first in ((FIRST, older, 200), (SECOND, newest, 0)):
        made = [listing(f"m{first + n:03d}", window) for n in range(len(vectors))]
        put_items(lake, "small-12345678", made, list(vectors), window)
    return newest


def assessed(lake: Lake, *options: str) -> Assessment:
    assess_projection.main(["--name", "weekly", *options])
    assessment = load_assessment(lake, "weekly")
    assert assessment is not None
    return assessment


def test_recall_is_that_of_exact_search_with_whole_embeddings(lake: Lake, items: np.ndarray) -> None:
    projection = left_by_a_fit(lake, "weekly", items, 20)
    found = assessed(lake, "--queries", "1000")
    assert (found.items, found.queries, found.change) == (300, 300, None)
    assert found.fitted.projection_id == projection.projection_id
    assert set(found.fitted.recall) == {8, 16, 20}
    everyone = np.arange(300)
    exact = scores(items, everyone, nearest(items, everyone, 100))
    for dims, recall in found.fitted.recall.items():
        projected = fit_projection(Moments.of(items), dims).apply(items)
        theirs = scores(items, everyone, nearest(projected, everyone, 100))
        wanted = {f"recall@{k}": neighbour_recall(theirs, exact, k).mean() for k in (1, 10, 100)}
        assert recall == pytest.approx(wanted, abs=1e-3)
    # What the fit would find if it kept all 48 axes.
    whole = scores(items, everyone, nearest(fit_projection(Moments.of(items), 48).apply(items), everyone, 10))
    assert found.centred == pytest.approx(neighbour_recall(whole, exact, 10).mean(), abs=1e-3)
    assert f"({found.centred:.3f} with all dimensions about their mean)" in found.advice
    assert "no projection before it" in found.advice


def test_the_projection_before_it_is_judged_on_the_same_items(lake: Lake, items: np.ndarray) -> None:
    before = left_by_a_fit(lake, "old", unit_rows(200, 3), 9)
    after = left_by_a_fit(lake, "weekly", items, 20)
    found = assessed(lake, "--previous", before.projection_id)
    change = found.change
    assert change is not None
    assert set(change.before.recall) == {8, 9}
    angles = principal_angles(after, before)
    assert change.largest_angle_degrees == pytest.approx(angles.max())
    assert change.mean_angle_degrees == pytest.approx(angles.mean())
    assert change.variance_held == pytest.approx(variance_held(after, before))
    assert change.gain == pytest.approx(found.fitted.recall[20]["recall@10"] - change.before.recall[9]["recall@10"])
    # Axes of other data, and half as many.
    assert change.gain > 2 * change.gain_error > 0
    assert "a rebuild is worth considering" in found.advice


def test_the_same_projection_again_has_not_moved(lake: Lake, items: np.ndarray) -> None:
    same = left_by_a_fit(lake, "weekly", items, 10)
    found = assessed(lake, "--previous", same.projection_id)
    assert found.change is not None
    assert (found.change.gain, found.change.gain_error) == (0, 0)
    assert found.change.largest_angle_degrees == pytest.approx(0, abs=1e-4)
    assert "nothing to rebuild" in found.advice


def test_a_sample_repeats(lake: Lake, items: np.ndarray) -> None:
    left_by_a_fit(lake, "weekly", items, 10)
    first = assessed(lake, "--items", "150", "--queries", "20")
    assert 60 < first.items < 200
    assert first.queries == 20
    assert assessed(lake, "--items", "150", "--queries", "20") == first


def test_what_is_sold_or_deleted_is_not_searched(lake: Lake) -> None:
    land_marketplace(lake)
    embed_listings.main(["--each_landed"])
    fit_job.main(["--name", "weekly"])
    found = items_of(lake, load_fit(lake, "weekly").card.encoder_id)
    gone = [item for item, row in found.items() if row["embedding"] is None]
    assert gone == ["m001", "m003"]
    assert assessed(lake).items == len(found) - len(gone)


def test_a_worse_projection_is_not_advised() -> None:
    rows = unit_rows(400, 1)
    good, bad = fit_projection(Moments.of(rows), 24), fit_projection(Moments.of(unit_rows(400, 5)), 8)
    assert assess(rows, 200, bad, good).advice.endswith("keep the one before.")
    assert assess(rows, 200, good.prefix(23), good).advice.endswith("a rebuild would change little.")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--items", "0"], "--items is 0"),
        (["--queries", "1"], "--queries is 1: give 2 or more"),
        ([], "no fit 'weekly'"),
    ],
)
def test_what_cannot_be_assessed_is_refused(lake: Lake, options: list[str], sentence: str) -> None:
    with pytest.raises(LensError, match=sentence):
        assess_projection.main(["--name", "weekly", *options])


def test_too_few_items_say_what_to_do(lake: Lake, items: np.ndarray) -> None:
    left_by_a_fit(lake, "weekly", items, 10)
    with pytest.raises(Exception, match="too few to assess a projection on: embed more windows, or raise --items"):
        assess_projection.main(["--name", "weekly", "--items", "4"])


def test_the_projection_of_another_encoder_is_refused(lake: Lake, items: np.ndarray) -> None:
    left_by_a_fit(lake, "weekly", items, 10)
    other = replace(fit_projection(Moments.of(unit_rows(200, 9)), 10), encoder_id="other-12345678")
    save_projection(lake, other)
    with pytest.raises(Exception, match="was fitted on embeddings of other-12345678, not of small-12345678"):
        assess_projection.main(["--name", "weekly", "--previous", other.projection_id])


def test_a_projection_that_is_not_in_the_lake_is_named(lake: Lake, items: np.ndarray) -> None:
    left_by_a_fit(lake, "weekly", items, 10)
    with pytest.raises(Exception, match="projection 12345678 is not in the lake"):
        assess_projection.main(["--name", "weekly", "--previous", "12345678"])
    assert not Path(lake.root, "fits", "weekly-assessment.json").exists()
