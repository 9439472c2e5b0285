"""The choice of a backend: never one that loses float32's neighbours, never a guess, and written down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_network import SIDE, encoder_of
from torch import nn

from models.encoders.calibration import COMPARED, LEAST_IMAGES, calibrate, recall_of
from models.encoders.encoder import Encoder
from models.encoders.runtime import Backend
from models.encoders.trials import LEAST_RECALL, Calibration, Recall, Trial
from models.errors import LensError

BATCH = 100


class Mixed(nn.Module):
    """Eight features of all pixels, by two layers of random weights; fewer bits move their neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Linear(3 * SIDE * SIDE, 32, bias=False), nn.ReLU(), nn.Linear(32, 8, bias=False))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for weights in self.mix.parameters():
                nn.init.normal_(weights)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.mix(pixels.flatten(1))
        return mixed


class Signs(nn.Module):
    """Features that are the same in any numbers: whether a pixel is light or dark."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.where(pixels.flatten(1) > 1.275, 1.0, -1.0)


class Counting(nn.Module):
    """As many steps as the image says, which no graph can."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        for _ in range(int(pixels.sum().item()) % 3):
            pixels = pixels + 1
        return pixels.flatten(1)


@pytest.fixture(scope="module")
def images() -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 256, (LEAST_IMAGES, 3, SIDE, SIDE), dtype=np.uint8)


def ticking(*seconds: float) -> Callable[[], float]:
    """A clock by which the batches that are timed take these seconds, in turn, again and again."""

    def moments() -> Iterator[float]:
        now = 0.0
        for n in count():
            yield now
            now += seconds[n % len(seconds)]
            yield now

    ticks = moments()
    return lambda: next(ticks)


def calibrated(
    tower: nn.Module, images: NDArray[Any], folder: Path, backend: Backend, *seconds: float
) -> tuple[Encoder, Calibration]:
    """An encoder, and the choice between float32 and a backend, which take so many seconds a batch."""
    encoder = encoder_of(tower)
    return encoder, calibrate(encoder, [Backend.FLOAT32, backend], images, BATCH, folder, ticking(*seconds))


def test_the_fastest_is_chosen_by_a_thousand_photos(images: NDArray[Any], tmp_path: Path) -> None:
    encoder, found = calibrated(Signs(), images, tmp_path, Backend.BFLOAT16, 4.0, 2.0)
    assert found.chosen is Backend.BFLOAT16
    assert [(trial.backend, trial.images_per_s) for trial in found.trials] == [("float32", 25), ("bfloat16", 50)]
    assert all(trial.accepted and trial.recall == Recall(own=1, queried=1, mixed=1) for trial in found.trials)
    assert (found.encoder_id, found.images) == (encoder.encoder_id, COMPARED)
    assert found.images >= 1000
    assert torch.__version__ in found.host
    assert Calibration.model_validate_json(found.model_dump_json()) == found


def test_another_computation_is_not_chosen_for_a_little_speed(images: NDArray[Any], tmp_path: Path) -> None:
    _, found = calibrated(Signs(), images, tmp_path, Backend.BFLOAT16, 1.0, 0.95)
    assert found.chosen is Backend.FLOAT32
    assert found.trials[1].accepted


@pytest.mark.parametrize("backend", [Backend.BFLOAT16, Backend.OPENVINO_INT8])
def test_one_that_loses_neighbours_is_not_used_however_fast(
    images: NDArray[Any], tmp_path: Path, backend: Backend
) -> None:
    _, found = calibrated(Mixed(), images, tmp_path, backend, 100.0, 1.0)
    assert found.chosen is Backend.FLOAT32
    stray = found.trials[1]
    assert stray.recall is not None
    # Its worst cosine alone would not tell: it may be as high as a good one's.
    assert stray.least_cosine is not None
    assert stray.least_cosine > 0.95
    assert 0.5 < stray.recall.least < LEAST_RECALL
    assert not stray.accepted
    assert stray.objection == "finds less than 99% of float32's neighbours"


def test_openvino_s_float32_finds_the_same(images: NDArray[Any], tmp_path: Path) -> None:
    _, found = calibrated(Mixed(), images, tmp_path, Backend.OPENVINO, 2.0, 1.0)
    assert found.chosen is Backend.OPENVINO
    assert found.trials[1].recall is not None
    assert found.trials[1].recall.least > 0.9999
    assert list((tmp_path / Backend.OPENVINO).iterdir())


def test_one_that_is_slower_is_given_up_after_some_batches(images: NDArray[Any], tmp_path: Path) -> None:
    _, found = calibrated(Signs(), images, tmp_path, Backend.BFLOAT16, 1.0, 1.1)
    assert found.chosen is Backend.FLOAT32
    slow = found.trials[1]
    assert (slow.recall, slow.objection) == (None, "is slower than float32")
    assert slow.images_per_s == pytest.approx(BATCH / 1.1)


def test_one_that_cannot_run_here_is_noted(images: NDArray[Any], tmp_path: Path) -> None:
    _, found = calibrated(Counting(), images, tmp_path, Backend.OPENVINO, 1.0)
    assert found.chosen is Backend.FLOAT32
    assert "cannot be exported to ONNX" in found.trials[1].objection


def test_fewer_photos_choose_nothing(images: NDArray[Any], tmp_path: Path) -> None:
    with pytest.raises(LensError, match="chosen by 1200 photos, and there are 1199: land more"):
        calibrated(Signs(), images[1:], tmp_path, Backend.BFLOAT16, 1.0)
    assert not list(tmp_path.iterdir())


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


class TestRecall:
    @given(seed=st.integers(0, 2**32 - 1), rows=st.integers(11, 60), noise=st.sampled_from([0.0, 0.02, 0.3, 3.0]))
    def test_is_the_share_of_the_ten_nearest_that_are_found(self, seed: int, rows: int, noise: float) -> None:
        chance = np.random.default_rng(seed)
        reference = unit(chance.normal(size=(rows, 6)))
        vectors = unit(reference + noise * chance.normal(size=reference.shape))
        blend = reference.copy()
        blend[1::2] = vectors[1::2]

        def found(asking: NDArray[np.float32], asked: NDArray[np.float32], row: int) -> set[int]:
            near = sorted((one for one in range(rows) if one != row), key=lambda one: -float(asking[row] @ asked[one]))
            return set(near[:10])

        def share(asking: NDArray[np.float32], asked: NDArray[np.float32]) -> float:
            return float(
                np.mean([len(found(asking, asked, n) & found(reference, reference, n)) / 10 for n in range(rows)])
            )

        measured = recall_of(vectors, reference)
        # Two that are equally near, up to rounding, may come in either order.
        assert measured.own == pytest.approx(share(vectors, vectors), abs=0.02)
        assert measured.queried == pytest.approx(share(reference, vectors), abs=0.02)
        assert measured.mixed == pytest.approx(share(reference, blend), abs=0.02)
        assert measured.least == min(measured.own, measured.queried, measured.mixed)
        assert noise or measured.least == 1

    @given(seed=st.integers(0, 2**32 - 1))
    def test_by_themselves_rotated_vectors_find_everything_and_beside_others_they_do_not(self, seed: int) -> None:
        chance = np.random.default_rng(seed)
        reference = unit(chance.normal(size=(200, 16)))
        turned = reference @ np.linalg.qr(chance.normal(size=(16, 16)))[0].astype(np.float32)
        measured = recall_of(turned, reference)
        assert measured.own > 0.99
        assert measured.least == min(measured.queried, measured.mixed) < 0.5

    def test_of_copies_is_whole_whichever_is_found(self) -> None:
        reference = np.repeat(unit(np.random.default_rng(0).normal(size=(2, 8))), 20, axis=0)
        assert recall_of(reference + np.float32(1e-8), reference).least == 1

    @pytest.mark.parametrize(("least", "accepted"), [(0.99, True), (0.9899, False)])
    @pytest.mark.parametrize("name", ["own", "queried", "mixed"])
    def test_the_lowest_of_the_three_decides(self, name: str, least: float, accepted: bool) -> None:
        recall = Recall(**{"own": 1.0, "queried": 1.0, "mixed": 1.0} | {name: least})
        assert Trial(backend=Backend.OPENVINO_INT8, recall=recall).accepted is accepted
