"""An exported embedder must compute what the embedder computes, for any number of images, and say in which space.

The models are small and untrained, but of the real architectures. ONNX Runtime computes the graph, as it does in Triton.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from small_siglip import save_siglip
from tiny_network import Sums, encoder_of
from torch import nn

from models.embedder import EMBEDDING, PIXELS, SPACE
from models.encoders.encoder import Encoder
from models.encoders.runtime import Precision
from models.errors import LensError
from models.moments import Moments
from models.onnx_embedder import export_onnx
from models.projection import Projection, fit_projection

NAME = "encoder-01234567-pca16-89abcdef"
SIZES = [(64, 64), (200, 80), (37, 90), (300, 300), (8, 8), (64, 65), (500, 31)]


def photos(count: int, seed: int = 0) -> list[Image.Image]:
    """Coloured patches, of many shapes."""
    chance = np.random.default_rng(seed)
    return [
        Image.fromarray(chance.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize(SIZES[n % len(SIZES)])
        for n in range(count)
    ]


def run(file: Path, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.object_]]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    vectors, spaces = session.run([EMBEDDING, SPACE], {PIXELS: pixels})
    return vectors, spaces


@dataclass(frozen=True)
class Exported:
    """An embedder, and the file that it was exported to."""

    encoder: Encoder
    projection: Projection
    file: Path

    def compare(self, images: list[Image.Image]) -> float:
        """The least cosine of the graph's vectors with the embedder's."""
        vectors, spaces = run(self.file, np.stack([self.encoder.prepare(image) for image in images]))
        assert vectors.dtype == np.float32
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
        assert spaces.tolist() == [[NAME]] * len(images)
        return float(np.vecdot(vectors, self.projection.apply(self.encoder.embed(images))).min())


@pytest.fixture(scope="module", params=["convolutions, whitened", "transformer"])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, untrained_siglip: Path
) -> Exported:
    folder = tmp_path_factory.mktemp("exported")
    whiten = request.param == "convolutions, whitened"
    encoder = Encoder.load(str(untrained_siglip if whiten else save_siglip(folder / "siglip")))
    projection = fit_projection(Moments.of(encoder.embed(photos(60, seed=1))), 16, whiten=whiten)
    assert export_onnx(encoder, projection, NAME, folder / "model.onnx") >= 0.9999
    return Exported(encoder, projection, folder / "model.onnx")


class TestAnExportedEmbedder:
    @pytest.mark.parametrize("count", [1, 2, 3, 7, 16])
    def test_agrees_with_the_embedder_whatever_the_batch_and_the_shapes(self, exported: Exported, count: int) -> None:
        assert exported.compare(photos(count)) >= 0.9999

    def test_refuses_images_of_another_size(self, exported: Exported) -> None:
        side = exported.encoder.image_side
        for shape in ((2, 3, side // 2, side // 2), (4, 3, side, side // 2), (1, 3, side, 2 * side)):
            with pytest.raises(Exception, match="Reshape"):
                run(exported.file, np.zeros(shape, np.uint8))

    def test_tells_nothing_of_the_machine(self, exported: Exported) -> None:
        content = exported.file.read_bytes()
        assert b".py" not in content
        assert str(Path(exported.encoder.source).parent).encode() not in content


def test_half_the_precision_takes_half_the_space(untrained_siglip: Path, tmp_path: Path) -> None:
    encoder = Encoder.load(str(untrained_siglip))
    projection = fit_projection(Moments.of(encoder.embed(photos(60, seed=1))), 16)
    half = Exported(encoder, projection, tmp_path / "model.onnx")
    # Measured on this model: 0.99999.
    assert export_onnx(encoder, projection, NAME, half.file, Precision.FLOAT16) >= 0.999
    assert half.compare(photos(7)) >= 0.999
    weights = sum(parameter.numel() for parameter in encoder.network.tower.parameters())  # type: ignore[union-attr]
    assert half.file.with_name("model.onnx.data").stat().st_size < 2.2 * weights


# ---- what cannot be exported, or only just ---------------------------------------------------------------------------


class Changing(nn.Module):
    """Computes one thing while it is exported, and another when it is run."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        sums = pixels[:, 0].sum(dim=2)
        return sums.flip(1) if torch.compiler.is_exporting() else sums


class Counting(nn.Module):
    """As many steps as the image says."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        sums = pixels[:, 0].sum(dim=2)
        for _ in range(int(sums[0, 0].item()) % 5):
            sums = sums + 1
        return sums


def projection_of(components: NDArray[np.float32], bias: NDArray[np.float32]) -> Projection:
    return Projection(components, bias, np.zeros(len(components)), np.ones(len(components)), 10)


def test_what_has_no_direction_is_given_the_embedder_s(tmp_path: Path) -> None:
    nowhere = projection_of(np.zeros((4, 3), np.float32), np.zeros(3, np.float32))
    export_onnx(encoder_of(Sums()), nowhere, NAME, tmp_path / "model.onnx")
    vectors, _ = run(tmp_path / "model.onnx", np.ones((2, 3, 4, 4), np.uint8))
    assert vectors.tolist() == nowhere.apply(np.ones((2, 4), np.float32)).tolist() == [[1, 0, 0]] * 2


def test_what_is_very_short_keeps_its_direction(tmp_path: Path) -> None:
    short = projection_of(1e-25 * np.eye(4, 3, dtype=np.float32), np.zeros(3, np.float32))
    encoder = encoder_of(Sums())
    exported = Exported(encoder, short, tmp_path / "model.onnx")
    export_onnx(encoder, short, NAME, exported.file)
    assert exported.compare(photos(5)) >= 0.9999


def test_a_graph_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    whole = projection_of(np.eye(4, dtype=np.float32), np.full(4, -0.5, np.float32))
    with pytest.raises(LensError, match=r"a cosine of only .*, less than 0.9999: compute it in the service"):
        export_onnx(encoder_of(Changing()), whole, NAME, tmp_path / "model.onnx")


def test_a_network_that_decides_as_it_goes_is_refused(tmp_path: Path) -> None:
    whole = projection_of(np.eye(4, dtype=np.float32), np.zeros(4, np.float32))
    with pytest.raises(LensError, match='encoder "a test\'s" cannot be exported to ONNX'):
        export_onnx(encoder_of(Counting()), whole, NAME, tmp_path / "model.onnx")


def test_a_preparation_that_is_more_than_pixels_is_refused(tmp_path: Path) -> None:
    encoder = encoder_of(Sums(), lambda image: np.zeros((3, 4, 4), np.float32))
    with pytest.raises(LensError, match="prepares images as float32 of shape .3, 4, 4., and only bytes"):
        export_onnx(encoder, projection_of(np.eye(4, dtype=np.float32), np.zeros(4, np.float32)), NAME, tmp_path / "m")


def test_thumbnails_are_refused(tmp_path: Path) -> None:
    encoder = Encoder.load("pixels:2")
    with pytest.raises(LensError, match="encoder 'pixels:2' has no network that could be exported"):
        export_onnx(
            encoder, projection_of(np.eye(12, 4, dtype=np.float32), np.zeros(4, np.float32)), NAME, tmp_path / "m"
        )
