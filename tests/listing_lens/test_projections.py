"""Projections in the lake: the one that is asked for comes back, or a sentence says why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from listing_lens.errors import LensError
from listing_lens.lake import Lake
from listing_lens.projections import Fit, fit_path, load_fit, load_projection, projection_folder, save_projection
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
    loaded = load_projection(lake, saved.projection_id)
    assert loaded.projection_id == saved.projection_id
    assert loaded.components.tobytes() == saved.components.tobytes()


def test_one_that_is_not_there_is_named(lake: Lake) -> None:
    with pytest.raises(LensError, match="projection 12345678 is not in the lake"):
        load_projection(lake, "12345678")


def test_one_half_written_is_not_there(lake: Lake) -> None:
    saved = projection(1)
    save_projection(lake, saved)
    Path(projection_folder(lake, saved.projection_id), "projection.json").unlink()
    with pytest.raises(LensError, match="is not in the lake"):
        load_projection(lake, saved.projection_id)


def test_another_one_in_its_place_is_refused(lake: Lake) -> None:
    wanted, other = projection(1), projection(2)
    save_projection(lake, wanted)
    for name, data in zip(("projection.safetensors", "projection.json"), other.save(), strict=True):
        lake.write_bytes(f"{projection_folder(lake, wanted.projection_id)}/{name}", data)
    with pytest.raises(LensError, match=f"holds projection {other.projection_id}"):
        load_projection(lake, wanted.projection_id)


def test_a_fit_comes_back_by_its_name(lake: Lake) -> None:
    card = EmbedderCard(encoder_source="/m", encoder_id="m-1", encoder_dims=6, projection_id="12345678", dims=3)
    fit = Fit(card=card, rows=60, windows=["w"], explained_variance=0.5)
    lake.write_bytes(fit_path(lake, "weekly"), fit.model_dump_json().encode())
    assert load_fit(lake, "weekly") == fit
    with pytest.raises(LensError, match="no fit 'monthly' in the lake"):
        load_fit(lake, "monthly")
