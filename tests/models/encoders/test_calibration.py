"""The choice of a backend: never one that strays from float32, never a guess, and written down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.encoders.calibration import Calibration, calibrate
from models.encoders.encoder import Encoder
from models.encoders.network import Network
from models.encoders.runtime import Backend
from models.errors import LensError


@pytest.fixture(scope="module")
def encoder(untrained_siglip: Path) -> Encoder:
    return Encoder.load(str(untrained_siglip))


@pytest.fixture(scope="module")
def prepared(encoder: Encoder) -> NDArray[Any]:
    side = encoder.image_side
    return np.random.default_rng(0).integers(0, 256, (8, 3, side, side), dtype=np.uint8)


def ticking(*seconds: float) -> Callable[[], float]:
    """A clock by which the encodings that are timed take these seconds, in turn, again and again."""

    def moments() -> Iterator[float]:
        now = 0.0
        for n in count():
            yield now
            now += seconds[n % len(seconds)]
            yield now

    ticks = moments()
    return lambda: next(ticks)


def bent(encoder: Encoder, noise: float) -> Encoder:
    """An encoder whose other backends give other embeddings than float32 does."""

    class Bent(Network):
        def on(self, backend: Backend) -> Network:
            moved = {
                name: weights + noise
                for name, weights in self.tower.state_dict().items()
                if weights.is_floating_point()
            }
            other = super().on(Backend.FLOAT32)
            other.tower.load_state_dict(moved, strict=False)
            return other

    network = encoder.network
    assert network is not None
    return replace(encoder, network=Bent(network.tower, network.device, network.dtype, network.scale, network.shift))


def test_the_fastest_is_chosen(encoder: Encoder, prepared: NDArray[Any]) -> None:
    chosen, found = calibrate(encoder, [Backend.FLOAT32, Backend.BFLOAT16], prepared, ticking(4.0, 2.0))
    assert found.chosen is Backend.BFLOAT16
    assert chosen.network is not None
    assert chosen.network.dtype is torch.bfloat16
    assert [(trial.backend, trial.images_per_s) for trial in found.trials] == [("float32", 2.0), ("bfloat16", 4.0)]
    assert (found.encoder_id, found.images) == (encoder.encoder_id, 8)
    assert torch.__version__ in found.host
    assert Calibration.model_validate_json(found.model_dump_json()) == found


def test_precision_is_not_given_up_for_a_little_speed(encoder: Encoder, prepared: NDArray[Any]) -> None:
    chosen, found = calibrate(encoder, [Backend.BFLOAT16, Backend.FLOAT32], prepared, ticking(0.95, 1.0))
    assert found.chosen is Backend.FLOAT32
    assert chosen is encoder


@pytest.mark.parametrize("backend", [Backend.BFLOAT16, Backend.INT8])
def test_a_backend_computes_close_to_float32(encoder: Encoder, prepared: NDArray[Any], backend: Backend) -> None:
    chosen, found = calibrate(encoder, [backend], prepared, ticking(1.0))
    cosines = np.einsum("nd,nd->n", chosen.encode(prepared), encoder.encode(prepared))
    assert found.chosen is backend
    assert found.trials[0].least_cosine == pytest.approx(cosines.min(), abs=1e-4)
    assert backend.least_cosine <= cosines.min() < 1
    # It is another computation, in truth.
    assert np.abs(chosen.encode(prepared) - encoder.encode(prepared)).max() > 1e-5


def test_one_that_strays_is_not_used_however_fast(encoder: Encoder, prepared: NDArray[Any]) -> None:
    chosen, found = calibrate(bent(encoder, 0.5), [Backend.FLOAT32, Backend.BFLOAT16], prepared, ticking(1.0))
    assert found.chosen is Backend.FLOAT32
    stray = found.trials[1]
    assert not stray.accepted
    assert stray.least_cosine is not None
    assert stray.least_cosine < 0.999
    assert stray.images_per_s is None
    np.testing.assert_array_equal(chosen.encode(prepared), encoder.encode(prepared))


def test_when_none_is_close_enough_the_job_ends(encoder: Encoder, prepared: NDArray[Any]) -> None:
    with pytest.raises(LensError, match=r"bfloat16: a cosine of 0\.\d+, less than 0\.999\): add float32"):
        calibrate(bent(encoder, 0.5), [Backend.BFLOAT16], prepared, ticking(1.0))


def test_one_that_cannot_run_here_is_noted(encoder: Encoder, prepared: NDArray[Any]) -> None:
    class Lacking(Network):
        def on(self, backend: Backend) -> Network:
            raise NotImplementedError("no such instructions")

    network = encoder.network
    assert network is not None
    lacking = replace(
        encoder, network=Lacking(network.tower, network.device, network.dtype, network.scale, network.shift)
    )
    _, found = calibrate(lacking, [Backend.FLOAT32, Backend.INT8], prepared, ticking(1.0))
    assert found.chosen is Backend.FLOAT32
    assert found.trials[1].refusal == "backend int8 cannot run here: no such instructions"
