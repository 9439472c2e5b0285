"""A space's backend on a host: the one that is pinned, or float32 on a host that cannot run it, which says so."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from beam_jobs.transforms.pinned_encoder import Host, PinnedEncoder, pinned_encoder
from listing_lens.errors import LensError
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.pins import Pin, Pins
from listing_lens.lake.windows import Lake
from models.encoders.backends import save_backend
from models.encoders.calibration import host_of
from models.encoders.encoder import Encoder
from models.encoders.runtime import Backend, Runtime
from models.encoders.trials import Calibration

NOW = datetime(2026, 11, 5, tzinfo=UTC)


@pytest.fixture(scope="module")
def encoder(untrained_siglip: Path) -> Encoder:
    return Encoder.load(str(untrained_siglip))


@pytest.fixture(scope="module")
def images(encoder: Encoder) -> NDArray[Any]:
    side = encoder.image_side
    return np.random.default_rng(0).integers(0, 256, (16, 3, side, side), dtype=np.uint8)


@pytest.fixture(scope="module")
def made(encoder: Encoder, images: NDArray[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pinned backend computes by."""
    folder = tmp_path_factory.mktemp("made")
    save_backend(encoder, Backend.OPENVINO_INT8, images, folder)
    return folder


@pytest.fixture
def embeddings(encoder: Encoder, tmp_path: Path) -> Embeddings:
    return Embeddings(Lake(str(tmp_path / "lake")), encoder.encoder_id)


@pytest.fixture
def pin(embeddings: Embeddings, made: Path) -> Pin:
    chosen = Calibration(
        encoder_id=embeddings.encoder_id, host="a first host", images=1000, chosen=Backend.OPENVINO_INT8, trials=()
    )
    return Pins(embeddings).create(chosen, made, NOW)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING):
        yield caplog


def test_without_a_pin_it_is_float32(
    encoder: Encoder, images: NDArray[Any], embeddings: Embeddings, tmp_path: Path
) -> None:
    found, backend = PinnedEncoder(encoder, embeddings, 16, None, tmp_path).encode_by(images)
    np.testing.assert_array_equal(found, encoder.encode(images))
    assert backend == "float32"


def test_it_is_the_backend_that_is_pinned(
    encoder: Encoder,
    images: NDArray[Any],
    embeddings: Embeddings,
    pin: Pin,
    tmp_path: Path,
    warnings: pytest.LogCaptureFixture,
) -> None:
    pinned = PinnedEncoder(encoder, embeddings, 16, pin, tmp_path)
    found, backend = pinned.encode_by(images)
    assert backend == "openvino-int8"
    assert pinned.host == Host(host=host_of(encoder.device), backend=Backend.OPENVINO_INT8)
    difference = np.abs(found - encoder.encode(images)).max()
    assert 1e-5 < difference < 0.2
    again, _ = PinnedEncoder(encoder, embeddings, 4, pin, tmp_path).encode_by(images[:4])
    np.testing.assert_allclose(again, found[:4], atol=1e-5)
    assert not warnings.records


def test_a_second_host_without_it_computes_in_float32_and_says_so(
    encoder: Encoder,
    images: NDArray[Any],
    embeddings: Embeddings,
    pin: Pin,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    warnings: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("models.encoders.graph.find_spec", lambda name: None)
    pinned = PinnedEncoder(encoder, embeddings, 16, pin, tmp_path)
    found, backend = pinned.encode_by(images)
    np.testing.assert_array_equal(found, encoder.encode(images))
    refusal = "openvino is not installed, and this backend needs it: install listing-lens[openvino]"
    assert (backend, pinned.host.backend, pinned.host.refusal) == ("float32", "float32", refusal)
    assert f"is computed in float32 here, and not in openvino-int8: {refusal}" in warnings.text


@pytest.mark.parametrize("lost", ["graph.xml", "graph.bin", "probes.safetensors"])
def test_what_it_computes_by_may_be_damaged(
    encoder: Encoder, images: NDArray[Any], embeddings: Embeddings, pin: Pin, tmp_path: Path, lost: str
) -> None:
    assert pin.files is not None
    Path(Pins(embeddings).files_of(pin.files), lost).unlink()
    pinned = PinnedEncoder(encoder, embeddings, 16, pin, tmp_path)
    np.testing.assert_array_equal(pinned.encode_by(images)[0], encoder.encode(images))
    assert pinned.host.backend == "float32"
    assert pinned.host.refusal


def test_an_encoder_that_has_become_another_is_refused(
    untrained_siglip: Path, encoder: Encoder, tmp_path: Path
) -> None:
    other = Embeddings(Lake(str(tmp_path)), "other-12345678")
    with pytest.raises(LensError, match=f"is now {encoder.encoder_id}, but other-12345678 is needed"):
        pinned_encoder(str(untrained_siglip), other, Runtime("cpu"), 16, None, tmp_path)
