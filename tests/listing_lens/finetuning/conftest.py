from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mugs import COLOURS, RECIPE, Place, write_sample

from listing_lens.finetuning.train import train_encoder
from listing_lens.lake.windows import Lake
from listing_lens.settings import load_settings
from models.encoders.small_siglip import save_untrained_siglip


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> str:
    titles = [f"{colour} mug" for colour in COLOURS]
    return str(save_untrained_siglip(tmp_path_factory.mktemp("parents") / "small", titles))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, parent: str) -> Path:
    """What a finished training left: the same one, asked for again, is over at once."""
    folder = tmp_path_factory.mktemp("trained")
    lake = Lake(str(folder / "lake"))
    write_sample(lake, "mugs")
    settings = load_settings(lake=lake.root, training_folder=folder / "finetune", projection_dims=4)
    train_encoder("first", "mugs", parent, RECIPE, settings)
    return settings.training_folder


@pytest.fixture
def trained(place: Place, checkpoints: Path) -> Place:
    """A place with the training `first`."""
    shutil.copytree(checkpoints, place.settings.training_folder)
    train_encoder("first", "mugs", place.parent, RECIPE, place.settings)
    return place


@pytest.fixture
def place(tmp_path: Path, parent: str) -> Place:
    lake = Lake(str(tmp_path / "lake"))
    write_sample(lake, "mugs")
    settings = load_settings(lake=lake.root, training_folder=tmp_path / "finetune", projection_dims=4)
    return Place(lake, parent, settings)
