"""What the trainings of these tests share: parents, pairs, and an Accelerate that remembers nothing of another training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from tiny_training import made_pairs, made_validation, save_conv_siglip, save_siglip, write_shards

from models.encoders.small_siglip import save_imagenet_siglip
from models.finetune.shards import Shards
from models.finetune.validation import Validation


@pytest.fixture(autouse=True)
def own_accelerate(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On the CPU; a process keeps the first precision that it was asked for."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SigLIP as transformers makes it from a config."""
    return save_siglip(tmp_path_factory.mktemp("parents") / "siglip")


@pytest.fixture(scope="session")
def dropping_siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that draws random numbers in every step."""
    return save_siglip(tmp_path_factory.mktemp("parents") / "dropping", dropout=0.3)


@pytest.fixture(scope="session")
def conv_siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with batch norms."""
    return save_conv_siglip(tmp_path_factory.mktemp("parents") / "conv")


@pytest.fixture(scope="session")
def imagenet_siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's parent, whose image tower has seen ImageNet."""
    return save_imagenet_siglip(tmp_path_factory.mktemp("parents") / "imagenet")


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """64 pairs in two shards of four row groups of 8."""
    return write_shards(tmp_path_factory.mktemp("pairs"), made_pairs(64), rows_per_group=8)


@pytest.fixture(scope="session")
def fine_shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """The same in row groups of 2: enough for four lanes, which devices and readers can share."""
    return write_shards(tmp_path_factory.mktemp("fine pairs"), made_pairs(64), rows_per_group=2)


@pytest.fixture(scope="session")
def validation() -> Validation:
    return made_validation(made_pairs(64))
