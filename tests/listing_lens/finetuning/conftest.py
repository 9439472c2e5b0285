from __future__ import annotations

from pathlib import Path

import pytest
from mugs import COLOURS, Place, write_sample

from listing_lens.lake.windows import Lake
from listing_lens.settings import load_settings
from models.encoders.untrained_siglip import save_untrained_siglip


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> str:
    titles = [f"{colour} mug" for colour in COLOURS]
    return str(save_untrained_siglip(tmp_path_factory.mktemp("parents") / "small-untrained", titles))


@pytest.fixture
def place(tmp_path: Path, parent: str) -> Place:
    lake = Lake(str(tmp_path / "lake"))
    write_sample(lake, "mugs")
    settings = load_settings(lake=lake.root, training_folder=tmp_path / "finetune", projection_dims=4)
    return Place(lake, parent, settings)
