"""Projections in the lake: the one that is asked for comes back, or a sentence says why not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from listing_lens.errors import LensError
from listing_lens.lake.fits import (
    Assessment,
    Change,
    Fit,
    Quality,
    fit_path,
    load_fit,
    load_projection,
    projection_folder,
    save_projection,
)
from listing_lens.lake.windows import Lake
from models.embedder import EmbedderCard
from models.moments import Moments
from models.projection import Projection, fit_projection


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


def projection(seed: int) -> Projection:
    rows = np.random.default_rng(seed).standard_normal((60, 6)).astype(np.float32)
    return fit_projection(Moments.of(rows), 3)


def test_comes_back(lake: Lake) -> None:
    saved = projection(1)
    save_projection(lake, saved)
    loaded = load_projection(lake, saved.projection_id, None)
    assert loaded.projection_id == saved.projection_id
    assert loaded.components.tobytes() == saved.components.tobytes()


def test_one_that_is_fitted_again_is_left_alone(lake: Lake) -> None:
    saved = projection(1)
    save_projection(lake, saved)
    files = sorted(Path(projection_folder(lake, saved.projection_id)).iterdir())
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    # Another order of merging moves the last digits of what the id does not count.
    again = replace(saved, spectrum=np.nextafter(saved.spectrum, 9), rows=saved.rows)
    assert again.projection_id == saved.projection_id
    save_projection(lake, again)
    assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in files] == before


@pytest.mark.parametrize("name", ["projection.safetensors", "projection.json"])
def test_one_that_is_damaged_is_mended_by_fitting_it_again(lake: Lake, name: str) -> None:
    saved = projection(1)
    save_projection(lake, saved)
    Path(projection_folder(lake, saved.projection_id), name).write_bytes(b"{}")
    with pytest.raises(LensError, match="damaged"):
        load_projection(lake, saved.projection_id, None)
    save_projection(lake, saved)
    assert load_projection(lake, saved.projection_id, None).projection_id == saved.projection_id


def test_one_of_another_encoder_is_refused(lake: Lake) -> None:
    saved = replace(projection(1), encoder_id="small-12345678")
    save_projection(lake, saved)
    assert load_projection(lake, saved.projection_id, "small-12345678").encoder_id == "small-12345678"
    with pytest.raises(LensError, match="embeddings of small-12345678, not of large-12345678"):
        load_projection(lake, saved.projection_id, "large-12345678")


@pytest.mark.parametrize(
    ("gain", "error", "end"),
    [
        (0.05, 0.01, "a rebuild is worth considering."),
        (-0.05, 0.01, "keep the one before."),
        (0.004, 0.003, "a rebuild would change little."),
        (0.0, 0.0, "a rebuild would change little."),
        (0.06, 0.04, "100 queries cannot tell whether a rebuild is worth it; assess the fit with more."),
        (0.0, 0.02, "100 queries cannot tell whether a rebuild is worth it; assess the fit with more."),
    ],
)
def test_the_advice_says_what_is_known(gain: float, error: float, end: str) -> None:
    now, before = (Quality(projection_id=one, dims=8, recall={8: {"recall@10": 0.9}}) for one in ("1" * 8, "2" * 8))
    change = Change(
        before=before,
        largest_angle_degrees=1,
        mean_angle_degrees=1,
        variance_held=0.9,
        gain=gain,
        gain_error=error,
    )
    assert Assessment(items=1000, queries=100, fitted=now, change=change).advice.endswith(end)


def test_one_that_is_not_there_is_named(lake: Lake) -> None:
    with pytest.raises(LensError, match="projection 12345678 is not in the lake"):
        load_projection(lake, "12345678", None)


def test_one_half_written_is_not_there(lake: Lake) -> None:
    saved = projection(1)
    save_projection(lake, saved)
    Path(projection_folder(lake, saved.projection_id), "projection.json").unlink()
    with pytest.raises(LensError, match="is not in the lake"):
        load_projection(lake, saved.projection_id, None)


def test_another_one_in_its_place_is_refused(lake: Lake) -> None:
    wanted, other = projection(1), projection(2)
    save_projection(lake, wanted)
    for name, data in zip(("projection.safetensors", "projection.json"), other.save(), strict=True):
        lake.write_bytes(f"{projection_folder(lake, wanted.projection_id)}/{name}", data)
    with pytest.raises(LensError, match=f"holds projection {other.projection_id}"):
        load_projection(lake, wanted.projection_id, None)


def test_a_fit_comes_back_by_its_name(lake: Lake) -> None:
    card = EmbedderCard(encoder_source="/m", encoder_id="m-1", encoder_dims=6, projection_id="12345678", dims=3)
    fit = Fit(card=card, rows=60, version=3, within="w", explained_variance=0.5)
    lake.write_bytes(fit_path(lake, "weekly"), fit.model_dump_json().encode())
    assert load_fit(lake, "weekly") == fit
    with pytest.raises(LensError, match="no fit 'monthly' in the lake"):
        load_fit(lake, "monthly")
