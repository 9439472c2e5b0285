"""`lens encoder calibrate`: what was tried, by how many photos, and what was chosen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from small_siglip import save_siglip
from tiny import FIRST, image_root, land, listing, photo

from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.pins import Pins
from listing_lens.lake.windows import Lake
from listing_lens.settings import load_settings
from models.encoders.files import identify

if TYPE_CHECKING:
    from tests.listing_lens.cli.conftest import Lens, Refusal


def land_photos(count: int) -> Lake:
    lake = Lake(load_settings().lake)
    root = Path(image_root(lake))
    root.mkdir(parents=True)
    for n in range(count):
        (root / f"i{n}.jpg").write_bytes(photo(n))
    land(lake, FIRST, [listing(f"i{n}") for n in range(count)])
    return lake


def test_shows_the_trials_and_the_choice(lens: Lens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, encoder = land_photos(1200), save_siglip(tmp_path / "siglip")
    monkeypatch.setenv("LENS_ENCODER_BACKENDS", '["bfloat16"]')
    result = lens("encoder", "calibrate", "--encoder", encoder)
    assert result.exit_code == 0, result.output
    pin = Pins(Embeddings(lake, identify(str(encoder)))).get()
    assert pin is not None
    assert "by 1,000 photos" in result.stdout
    assert all(trial.backend in result.stdout for trial in pin.calibration.trials)
    assert result.stdout.splitlines()[-1] == f"{identify(str(encoder))} is computed in {pin.backend} from now on"


def test_by_too_few_photos_is_refused(refusal: Refusal, untrained_siglip: Path) -> None:
    land_photos(3)
    said = refusal("encoder", "calibrate", "--encoder", untrained_siglip)
    assert said == "a backend is chosen by 1200 photos, and there are 3: land more listings first"
