"""Backends compute what float32 does, nearly, in any batch and in any process; one that computes something else is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from small_siglip import save_siglip
from tiny_network import Sums, encoder_of

from models.encoders.backends import open_backend, save_backend
from models.encoders.encoder import Encoder
from models.encoders.graph import require_packages
from models.encoders.network import Network
from models.encoders.runtime import Backend
from models.errors import LensError

OTHERS = [backend for backend in Backend if backend is not Backend.FLOAT32]
OPENVINO = [Backend.OPENVINO, Backend.OPENVINO_INT8]
# Measured on these models, with a margin. Untrained transformers are easily quantised: recall is what decides.
LEAST_COSINE = {Backend.BFLOAT16: 0.999, Backend.OPENVINO: 0.99999, Backend.OPENVINO_INT8: 0.9}


@pytest.fixture(scope="module", params=["convolutions", "transformer"])
def encoder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, untrained_siglip: Path
) -> Encoder:
    transformer = request.param == "transformer"
    folder = save_siglip(tmp_path_factory.mktemp("siglip")) if transformer else untrained_siglip
    return Encoder.load(str(folder))


@pytest.fixture(scope="module")
def photos(encoder: Encoder) -> NDArray[np.uint8]:
    chance = np.random.default_rng(0)
    patches = chance.integers(0, 256, (24, 5, 7, 3), dtype=np.uint8)
    return np.stack([encoder.prepare(Image.fromarray(each).resize((90, 70))) for each in patches])


@pytest.fixture(scope="module")
def saved(encoder: Encoder, photos: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> dict[Backend, Path]:
    """What each backend computes by."""
    folders = {backend: tmp_path_factory.mktemp(backend) for backend in OTHERS}
    for backend, folder in folders.items():
        save_backend(encoder, backend, photos, folder)
    return folders


@pytest.mark.parametrize("backend", OTHERS)
def test_a_backend_computes_close_to_float32(
    encoder: Encoder, photos: NDArray[np.uint8], saved: dict[Backend, Path], backend: Backend
) -> None:
    found, wanted = open_backend(encoder, backend, saved[backend]).encode(photos), encoder.encode(photos)
    assert (found.dtype, found.shape) == (np.float32, wanted.shape)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.vecdot(found, wanted).min() >= LEAST_COSINE[backend]
    # It is another computation, in truth.
    assert np.abs(found - wanted).max() > (0 if backend is Backend.OPENVINO else 1e-5)


@pytest.mark.parametrize("backend", OPENVINO)
def test_a_photo_has_one_embedding_whatever_its_batch(
    encoder: Encoder, photos: NDArray[np.uint8], saved: dict[Backend, Path], backend: Backend
) -> None:
    opened = open_backend(encoder, backend, saved[backend])
    together = opened.encode(photos)
    alone = np.vstack([opened.encode(photos[n : n + 1]) for n in range(4)])
    np.testing.assert_allclose(together[:4], alone, atol=1e-5)
    np.testing.assert_allclose(opened.encode(photos[::-1])[::-1], together, atol=1e-5)


@pytest.mark.parametrize("backend", OTHERS)
def test_it_is_another_one_for_other_weights(
    photos: NDArray[np.uint8], saved: dict[Backend, Path], encoder: Encoder, backend: Backend
) -> None:
    network = encoder.network
    assert isinstance(network, Network)
    turned = replace(encoder, network=replace(network, scale=-network.scale))
    if backend in OPENVINO:
        # The graph is whole in itself, so it is the kept probes that tell.
        (saved[backend] / "probes.safetensors").rename(saved[backend] / "aside")
        save_backend(turned, Backend.BFLOAT16, photos, saved[backend])
    try:
        with pytest.raises(LensError, match=f"backend {backend} computes something else here than where it was made"):
            open_backend(turned if backend is Backend.BFLOAT16 else encoder, backend, saved[backend])
    finally:
        if backend in OPENVINO:
            (saved[backend] / "aside").rename(saved[backend] / "probes.safetensors")


@pytest.mark.parametrize("backend", OTHERS)
def test_what_it_computes_by_may_be_gone(encoder: Encoder, tmp_path: Path, backend: Backend) -> None:
    with pytest.raises(LensError, match=f"backend {backend}"):
        open_backend(encoder, backend, tmp_path)


@pytest.mark.parametrize("backend", OPENVINO)
def test_openvino_leaves_gpus_to_torch(backend: Backend, tmp_path: Path) -> None:
    encoder = encoder_of(Sums())
    assert isinstance(encoder.network, Network)
    elsewhere = replace(encoder, network=replace(encoder.network, device=torch.device("cuda")))
    with pytest.raises(LensError, match=f"backend {backend} runs on CPUs only, and this process has a GPU"):
        open_backend(elsewhere, backend, tmp_path)


def test_what_is_not_installed_is_named_with_its_extra() -> None:
    with pytest.raises(
        LensError, match=r"^no_such_package is not installed, and a test needs it: install listing-lens\[x\]$"
    ):
        require_packages(["numpy", "no_such_package"], "x", "a test")


def test_thumbnails_have_none(tmp_path: Path) -> None:
    with pytest.raises(LensError, match="encoder 'pixels:2' has no network"):
        save_backend(Encoder.load("pixels:2"), Backend.OPENVINO, np.zeros((1, 12), np.uint8), tmp_path)
