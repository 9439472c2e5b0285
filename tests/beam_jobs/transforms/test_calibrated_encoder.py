"""The backend of a host: chosen once there are images to choose by, remembered on the host, and checked when remembered."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from beam_jobs.transforms.calibrated_encoder import CalibratedEncoder, calibrated_encoder
from numpy.typing import NDArray

from listing_lens.errors import LensError
from models.encoders.calibration import Calibration
from models.encoders.encoder import Encoder
from models.encoders.network import Network
from models.encoders.runtime import Backend, Runtime

BOTH = (Backend.FLOAT32, Backend.BFLOAT16)


@pytest.fixture(scope="module")
def encoder(untrained_siglip: Path) -> Encoder:
    return Encoder.load(str(untrained_siglip))


@pytest.fixture(scope="module")
def images(encoder: Encoder) -> NDArray[Any]:
    side = encoder.image_side
    return np.random.default_rng(0).integers(0, 256, (16, 3, side, side), dtype=np.uint8)


def closeness(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.einsum("nd,nd->n", one, other).min())


def test_a_few_images_are_computed_in_float32_and_choose_nothing(
    encoder: Encoder, images: NDArray[Any], tmp_path: Path
) -> None:
    calibrated = CalibratedEncoder(encoder, BOTH, 16, tmp_path)
    np.testing.assert_allclose(calibrated.encode(images[:7]), encoder.encode(images[:7]), atol=1e-6)
    assert calibrated.calibration is None
    calibrated.encode(images[:8])
    assert calibrated.calibration is not None


def test_float32_alone_is_no_choice(encoder: Encoder, images: NDArray[Any], tmp_path: Path) -> None:
    calibrated = CalibratedEncoder(encoder, (Backend.FLOAT32,), 16, tmp_path)
    np.testing.assert_allclose(calibrated.encode(images), encoder.encode(images), atol=1e-6)
    assert calibrated.calibration is None
    assert not list(tmp_path.iterdir())


def test_a_baseline_without_a_network_needs_none(tmp_path: Path) -> None:
    pixels = Encoder.load("pixels:2")
    calibrated = CalibratedEncoder(pixels, BOTH, 4, tmp_path)
    rows = np.random.default_rng(0).random((9, 12), dtype=np.float32)
    np.testing.assert_array_equal(calibrated.encode(rows), pixels.encode(rows))


def test_a_host_remembers_for_its_next_process(encoder: Encoder, images: NDArray[Any], tmp_path: Path) -> None:
    first = CalibratedEncoder(encoder, (Backend.BFLOAT16,), 16, tmp_path)
    vectors = first.encode(images)
    second = CalibratedEncoder(encoder, (Backend.BFLOAT16,), 16, tmp_path)
    np.testing.assert_array_equal(second.encode(images), vectors)
    # To the digit: it was not tried anew.
    assert second.calibration == first.calibration
    assert 0.999 < closeness(vectors, encoder.encode(images)) < 1


@pytest.mark.parametrize("damage", ["{", "{}", '{"chosen": "magic"}'])
def test_what_cannot_be_read_is_chosen_anew(
    encoder: Encoder, images: NDArray[Any], tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    CalibratedEncoder(encoder, BOTH, 16, tmp_path).encode(images)
    [path] = tmp_path.glob("*.json")
    path.write_text(damage)
    with caplog.at_level(logging.WARNING):
        CalibratedEncoder(encoder, BOTH, 16, tmp_path).encode(images)
    assert "choosing anew" in caplog.text
    assert Calibration.model_validate_json(path.read_bytes()).encoder_id == encoder.encoder_id


def test_a_remembered_backend_that_strays_by_now_is_not_used(
    encoder: Encoder, images: NDArray[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CalibratedEncoder(encoder, (Backend.BFLOAT16,), 16, tmp_path).encode(images)
    on = Encoder.on

    class Backwards(Network):
        def __call__(self, prepared: NDArray[Any]) -> NDArray[np.float32]:
            return -super().__call__(prepared)

    def backwards(self: Encoder, backend: Backend) -> Encoder:
        other = on(self, backend).network
        assert other is not None
        return replace(self, network=Backwards(other.tower, other.device, other.dtype, other.scale, other.shift))

    monkeypatch.setattr(Encoder, "on", backwards)
    with pytest.raises(LensError, match="add float32"):
        CalibratedEncoder(encoder, (Backend.BFLOAT16,), 16, tmp_path).encode(images)


def test_a_host_that_can_keep_nothing_chooses_all_the_same(
    encoder: Encoder, images: NDArray[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    calibrated = CalibratedEncoder(encoder, BOTH, 16, tmp_path / "file" / "calibrations")
    with caplog.at_level(logging.WARNING):
        assert closeness(calibrated.encode(images), encoder.encode(images)) > 0.999
    assert calibrated.calibration is not None
    assert "cannot be kept" in caplog.text


def test_threads_wait_for_one_choice(encoder: Encoder, images: NDArray[Any], tmp_path: Path) -> None:
    calibrated = CalibratedEncoder(encoder, BOTH, 16, tmp_path)
    with ThreadPoolExecutor(4) as threads:
        vectors: Sequence[NDArray[np.float32]] = list(threads.map(calibrated.encode, [images] * 4))
    for others in vectors[1:]:
        np.testing.assert_allclose(others, vectors[0], atol=1e-6)


def test_an_encoder_that_has_become_another_is_refused(
    untrained_siglip: Path, encoder: Encoder, tmp_path: Path
) -> None:
    with pytest.raises(LensError, match=f"is now {encoder.encoder_id}, but other-12345678 is needed"):
        calibrated_encoder(str(untrained_siglip), "other-12345678", Runtime("cpu"), 16, tmp_path)
