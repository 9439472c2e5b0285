"""Fitting: the newest embedding of each item, whatever files it lies in, gives the projection that scikit-learn gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from tiny import FIRST, SECOND, bounds, correlated, items_of, land, land_marketplace, listing, put_items

from beam_jobs import embed_listings, fit_projection
from beam_jobs.launcher import refusal
from beam_jobs.transforms.sampling import is_sampled
from listing_lens.errors import LensError
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.fits import Fit, load_fit, load_projection
from listing_lens.lake.window import Window
from listing_lens.lake.windows import Lake
from models.encoders.files import identify
from models.projection import Projection


def test_it_is_the_pca_of_all_embeddings_in_the_lake(lake: Lake) -> None:
    land_marketplace(lake)
    embed_listings.main(["--each_landed"])
    fit_projection.main(["--name", "first"])
    fit = load_fit(lake, "first")
    projection = load_projection(lake, fit.card.projection_id, fit.card.encoder_id)
    embedded = [row["embedding"] for row in items_of(lake, fit.card.encoder_id).values()]
    rows = np.stack([row for row in embedded if row is not None])
    reference = PCA(8, svd_solver="full").fit(rows.astype(np.float64))
    # Of forty items two are sold, and one has no photo that can be used.
    assert fit.rows == len(rows) == 37
    assert (fit.version, fit.within) == (Embeddings(lake, fit.card.encoder_id).require(), None)
    assert fit.explained_variance == pytest.approx(reference.explained_variance_ratio_.sum(), rel=1e-5)
    overlap = np.abs(np.sum(projection.components * reference.components_.T, axis=0))
    np.testing.assert_allclose(overlap, 1, atol=1e-4)


def test_a_window_narrows_it_to_items_that_were_last_updated_in_it(lake: Lake) -> None:
    land_marketplace(lake)
    embed_listings.main(["--each_landed"])
    fit_projection.main(["--name", "narrow", *bounds(SECOND)])
    fit = load_fit(lake, "narrow")
    # m001, too, was updated then: it was sold.
    assert (fit.within, fit.rows) == (SECOND.name, 20)
    rows = items_of(lake, fit.card.encoder_id).values()
    inside = [row["embedding"] for row in rows if row["updated_at"] in SECOND and row["embedding"] is not None]
    projection = load_projection(lake, fit.card.projection_id, fit.card.encoder_id)
    np.testing.assert_allclose(projection.mean, np.mean(inside, axis=0), atol=1e-5)


@pytest.fixture
def embedded(lake: Lake, untrained_siglip: Path) -> dict[str, np.ndarray]:
    """Embeddings of 400 items, half of which were embedded twice, and some sold ones. Returns each item's newest."""
    encoder, newest = identify(str(untrained_siglip)), {}
    for window, first, seed in ((FIRST, 0, 1), (SECOND, 100, 2)):
        rows = correlated(300, 16, mean=0.5, scale=0.1, seed=seed)
        items = [f"m{n:03d}" for n in range(first, first + 300)]
        sold = [f"sold{n}" for n in range(20)]
        made = [listing(item, window) for item in [*items, *sold]]
        put_items(lake, encoder, made, [*rows, *(None for _ in sold)], window)
        newest |= dict(zip(items, rows, strict=True))
    return newest


def _fit(lake: Lake, name: str, *options: str) -> tuple[Fit, Projection]:
    fit_projection.main(["--name", name, *options])
    fit = load_fit(lake, name)
    return fit, load_projection(lake, fit.card.projection_id, fit.card.encoder_id)


def test_a_sample_is_of_whole_items_and_repeats(lake: Lake, embedded: dict[str, np.ndarray]) -> None:
    fit, projection = _fit(lake, "sampled", "--fraction", "0.3")
    item_ids = pa.array(sorted(embedded))
    drawn = [
        item for item, is_in in zip(sorted(embedded), is_sampled(item_ids, 0.3, "fit projection"), strict=True) if is_in
    ]
    rows = np.stack([embedded[item] for item in drawn])
    assert 0.2 < len(drawn) / len(embedded) < 0.4
    assert (fit.rows, fit.share) == (len(rows), 0.3)
    np.testing.assert_allclose(projection.mean, rows.mean(axis=0), rtol=1e-5)
    assert _fit(lake, "again", "--fraction", "0.3")[0].card == fit.card
    # Of 400 rows, 120 are the same share.
    assert _fit(lake, "by rows", "--rows", "120")[0] == fit
    assert _fit(lake, "all of them", "--rows", "10000")[0].share == 1


def test_axes_are_kept_by_the_variance_that_they_hold_and_whitened(lake: Lake, embedded: dict[str, np.ndarray]) -> None:
    fit, projection = _fit(lake, "white", "--explained_variance", "0.9", "--whiten")
    rows = np.vstack(list(embedded.values())).astype(np.float64)
    reference = PCA(0.9, svd_solver="full", whiten=True).fit(rows)
    assert fit.card.dims == projection.dims == reference.n_components_
    assert projection.whitened
    np.testing.assert_allclose(
        np.abs(projection.as_pca().transform(rows)), np.abs(reference.transform(rows)), atol=1e-3
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--fraction", "0"], "--fraction is 0.0"),
        (["--fraction", "1.5"], "--fraction is 1.5"),
        (["--rows", "0"], "--rows is 0"),
        (["--explained_variance", "1"], "--explained_variance is 1.0"),
    ],
)
def test_a_share_that_is_none_is_refused_before_anything_is_read(lake: Lake, options: list[str], sentence: str) -> None:
    with pytest.raises(LensError, match=sentence):
        fit_projection.main(["--name", "none", *options])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--dims", "0"], "cannot keep 0 dimensions"),
        (["--dims", "17"], "cannot keep 17 dimensions of embeddings that have 16"),
        (["--rows", "8", "--dims", "8"], "8 embeddings cannot fit a projection to 8"),
        (["--window_start", FIRST.start.isoformat()], "--window_end is missing: give both bounds"),
        (["--window_end", FIRST.start.isoformat()], "--window_start is missing: give both bounds"),
    ],
)
def test_a_fit_that_must_fail_is_refused_before_all_is_read(
    lake: Lake, embedded: dict[str, np.ndarray], options: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_projection, "run", lambda *_: pytest.fail("the pipeline was built"))
    with pytest.raises(LensError, match=sentence):
        fit_projection.main(["--name", "none", *options])


@pytest.mark.parametrize(
    "options", [["--dims", "4", "--explained_variance", "0.5"], ["--fraction", "0.5", "--rows", "9"]]
)
def test_options_that_contradict_each_other_are_refused(
    lake: Lake, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        fit_projection.main(["--name", "none", *options])
    assert "not allowed with" in capsys.readouterr().err


def test_a_sample_that_draws_nothing_says_so(lake: Lake, embedded: dict[str, np.ndarray]) -> None:
    with pytest.raises(Exception, match="holds no embedding among the drawn 0.00% of the items"):
        fit_projection.main(["--name", "none", "--fraction", "0.000001"])


@settings(max_examples=25, deadline=None)
@given(data=st.data(), shards=st.integers(1, 8), seed=st.integers(0, 999))
def test_shards_combine_in_any_order(data: st.DataObject, shards: int, seed: int) -> None:
    rows = correlated(200, 6, mean=1.0, scale=0.01, seed=seed)
    cuts = sorted(data.draw(st.lists(st.integers(1, 199), max_size=12, unique=True)))
    combine = fit_projection.MergeMoments()
    accumulators = [combine.create_accumulator() for _ in range(shards)]
    for part in data.draw(st.permutations(np.split(rows, cuts))):
        at = data.draw(st.integers(0, shards - 1))
        accumulators[at] = combine.add_input(accumulators[at], part)
    merged = combine.extract_output(combine.merge_accumulators(data.draw(st.permutations(accumulators))))
    assert merged is not None
    covariance = np.cov(rows.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(merged.covariance, covariance, atol=1e-6 * np.abs(covariance).max())
    assert combine.extract_output(combine.merge_accumulators([None, None])) is None


def test_a_lake_without_embeddings_says_what_to_do(lake: Lake) -> None:
    land_marketplace(lake, items=8)
    with pytest.raises(LensError, match="holds no embeddings .*run `lens embed` first"):
        fit_projection.main(["--name", "none"])


def test_too_few_embeddings_are_refused_and_leave_nothing(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENS_MAX_DEAD_LETTER_RATIO", "1")
    land_marketplace(lake, items=8)
    embed_listings.main(["--each_landed"])
    with pytest.raises(Exception, match="cannot fit a projection to 8 dimensions") as failure:
        fit_projection.main(["--name", "few"])
    assert "embed more windows first" in (refusal(failure.value) or "")
    assert not Path(lake.root, "fits").exists()


def test_windows_without_embeddings_are_refused(lake: Lake) -> None:
    land(lake, FIRST, [])
    embed_listings.main(bounds(FIRST))
    with pytest.raises(LensError, match="holds no embeddings .*run `lens embed` first"):
        fit_projection.main(["--name", "empty"])


def test_another_window_than_any_is_refused(lake: Lake) -> None:
    land_marketplace(lake)
    embed_listings.main(bounds(FIRST))
    late = Window.parse("2027-01-01T00:00:00Z", "2027-01-02T00:00:00Z")
    with pytest.raises(LensError, match="of items that were last updated in .2027-01-01"):
        fit_projection.main(["--name", "late", *bounds(late)])
