"""Fitting: the lake's embeddings, whatever files they lie in, give the projection that scikit-learn gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA
from tiny import FIRST, SECOND, land, land_marketplace

from beam_jobs import embed_listings, fit_projection
from beam_jobs.launcher import refusal
from listing_lens.errors import LensError
from listing_lens.lake import Lake, embeddings
from listing_lens.projections import load_fit, load_projection
from listing_lens.records import embedding_matrix
from listing_lens.window import Window

_BOTH = ["--window_start", FIRST.start.isoformat(), "--window_end", SECOND.end.isoformat()]


def test_it_is_the_pca_of_all_embeddings_in_the_lake(lake: Lake) -> None:
    land_marketplace(lake)
    embed_listings.main([*_BOTH, "--each_landed"])
    fit_projection.main(["--name", "first"])
    fit = load_fit(lake, "first")
    projection = load_projection(lake, fit.card.projection_id)
    rows = np.vstack([embedding_matrix(b) for b in lake.read(embeddings(fit.card.encoder_id), [FIRST, SECOND])])
    reference = PCA(8, svd_solver="full").fit(rows.astype(np.float64))
    assert fit.rows == len(rows) == 38
    assert fit.windows == [FIRST.name, SECOND.name]
    assert fit.explained_variance == pytest.approx(reference.explained_variance_ratio_.sum(), rel=1e-5)
    overlap = np.abs(np.sum(projection.components * reference.components_.T, axis=0))
    np.testing.assert_allclose(overlap, 1, atol=1e-4)


def test_a_window_narrows_it(lake: Lake) -> None:
    land_marketplace(lake)
    embed_listings.main([*_BOTH, "--each_landed"])
    fit_projection.main(["--name", "narrow", "--window_start", str(SECOND.start), "--window_end", str(SECOND.end)])
    assert load_fit(lake, "narrow").windows == [SECOND.name]


def test_a_lake_without_embeddings_says_what_to_do(lake: Lake) -> None:
    land_marketplace(lake, items=8)
    with pytest.raises(LensError, match="holds no embeddings .*run `lens embed` first"):
        fit_projection.main(["--name", "none"])


def test_too_few_embeddings_are_refused_and_leave_nothing(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENS_MAX_DEAD_LETTER_RATIO", "1")
    land_marketplace(lake, items=8)
    embed_listings.main([*_BOTH, "--each_landed"])
    with pytest.raises(Exception, match="cannot fit a projection to 8 dimensions") as failure:
        fit_projection.main(["--name", "few"])
    assert "embed more windows first" in (refusal(failure.value) or "")
    assert not Path(lake.root, "fits").exists()


def test_windows_without_embeddings_are_refused(lake: Lake) -> None:
    land(lake, FIRST, [])
    embed_listings.main(["--window_start", FIRST.start.isoformat(), "--window_end", FIRST.end.isoformat()])
    with pytest.raises(Exception, match="hold no embedding"):
        fit_projection.main(["--name", "empty"])


def test_another_window_than_any_is_refused(lake: Lake) -> None:
    land(lake, FIRST, [])
    embed_listings.main(["--window_start", FIRST.start.isoformat(), "--window_end", FIRST.end.isoformat()])
    late = Window.parse("2027-01-01T00:00:00Z", "2027-01-02T00:00:00Z")
    with pytest.raises(LensError, match="within .2027-01-01"):
        fit_projection.main(["--name", "late", "--window_start", str(late.start), "--window_end", str(late.end)])
