"""A model repository: Triton must be able to read what is written, and find the version of a space in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import json_format, text_format
from hypothesis import given
from hypothesis import strategies as st
from tiny_network import encoder_of
from torch import nn
from tritonclient.grpc import model_config_pb2

from listing_lens.embedding.embedder import Embedder
from listing_lens.embedding.model_repository import (
    ExportedVersion,
    Instances,
    cards_of,
    config_of,
    export_version,
    exported_versions,
)
from listing_lens.errors import LensError
from models.embedder import MODEL, EmbedderCard
from models.encoders.encoder import Encoder
from models.encoders.runtime import Precision
from models.moments import Moments
from models.projection import fit_projection


def parsed(config: str) -> model_config_pb2.ModelConfig:
    """As Triton reads it."""
    return text_format.Parse(config, model_config_pb2.ModelConfig())


def version(number: int, *, side: int = 64, dims: int = 16, source: str = "/encoders/a") -> ExportedVersion:
    card = EmbedderCard(
        encoder_source=source,
        encoder_id="a-01234567",
        encoder_dims=192,
        projection_id=f"{number:08x}",
        dims=dims,
    )
    return ExportedVersion(
        version=number, card=card, image_shape=(3, side, side), precision=Precision.FLOAT32, least_cosine=1.0
    )


class TestTheConfig:
    def test_is_what_triton_reads(self) -> None:
        config = parsed(config_of([version(3), version(7)], Instances("gpu", 2, most_together=16, most_waiting=99)))
        assert (config.name, config.backend, config.max_batch_size) == (MODEL, "onnxruntime", 16)
        [pixels], [vectors, space] = config.input, config.output
        assert (pixels.name, pixels.data_type, list(pixels.dims)) == (
            "pixels",
            model_config_pb2.TYPE_UINT8,
            [3, 64, 64],
        )
        assert (vectors.name, vectors.data_type, list(vectors.dims)) == ("embedding", model_config_pb2.TYPE_FP32, [16])
        assert (space.name, space.data_type, list(space.dims)) == ("space", model_config_pb2.TYPE_STRING, [1])
        assert config.version_policy.HasField("all")
        [group] = config.instance_group
        assert (group.count, group.kind) == (2, model_config_pb2.ModelInstanceGroup.KIND_GPU)
        policy = config.dynamic_batching.default_queue_policy
        assert policy.max_queue_size == 99
        # Triton lets a request wait for less than the default, and 0 stands for no limit at all.
        assert policy.allow_timeout_override
        assert policy.default_timeout_microseconds == 60_000_000

    def test_takes_any_size_only_where_the_versions_differ(self) -> None:
        config = parsed(config_of([version(3), version(7, side=96)], Instances()))
        assert list(config.input[0].dims) == [3, -1, -1]
        assert list(config.output[0].dims) == [16]
        config = parsed(config_of([version(3), version(7, dims=8)], Instances()))
        assert list(config.input[0].dims) == [3, 64, 64]
        assert list(config.output[0].dims) == [-1]

    @given(st.dictionaries(st.integers(1, 10**9), st.text(min_size=1), max_size=4))
    def test_tells_the_card_of_every_version(self, sources: dict[int, str]) -> None:
        versions = [version(number, source=source) for number, source in sources.items()]
        told = json_format.MessageToDict(parsed(config_of(versions, Instances())), preserving_proto_field_name=True)
        assert cards_of(told.get("parameters", {})) == {exported.version: exported.card for exported in versions}


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    rows = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    return Embedder(encoder_of(Weights()), fit_projection(Moments.of(rows), 3))


class Weights(nn.Module):
    """Many weights that add up to one; what is left of them is the sums of an image's rows."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.full((10_000,), 1e-4))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels[:, 0].sum(dim=2) * self.weights.sum()


def card_of(embedder: Embedder) -> EmbedderCard:
    return EmbedderCard(
        encoder_source=embedder.encoder.source,
        encoder_id=embedder.encoder.encoder_id,
        encoder_dims=embedder.encoder.dims,
        projection_id=embedder.projection.projection_id,
        dims=embedder.projection.dims,
    )


def test_a_version_has_its_number_until_it_is_exported_again(embedder: Embedder, tmp_path: Path) -> None:
    card = card_of(embedder)
    exported = export_version(7, card, embedder, tmp_path)
    folder = tmp_path / MODEL / "7"
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "model.onnx", "model.onnx.data"]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["7", "config.pbtxt"]
    assert exported_versions(tmp_path) == [exported]
    assert exported.image_shape == (3, 4, 4)

    whole = (folder / "model.onnx.data").stat().st_size
    again = export_version(7, card, embedder, tmp_path, Precision.FLOAT16, Instances(count=2))
    assert exported_versions(tmp_path) == [again]
    assert (folder / "model.onnx.data").stat().st_size < 0.6 * whole
    config = parsed((tmp_path / MODEL / "config.pbtxt").read_text())
    assert config.instance_group[0].count == 2

    # A space has one version, also when MLflow was set up afresh.
    with pytest.raises(LensError, match=f"listing-embedder/7 is of space {card.space} too"):
        export_version(1, card, embedder, tmp_path)
    assert exported_versions(tmp_path) == [again]


def test_an_export_that_fails_leaves_what_was_there(embedder: Embedder, tmp_path: Path) -> None:
    thumbnails = Encoder.load("pixels:2")
    card = card_of(embedder)
    with pytest.raises(LensError, match="has no network that could be exported"):
        export_version(8, card, Embedder(thumbnails, embedder.projection), tmp_path)
    assert exported_versions(tmp_path) == []
    assert list((tmp_path / MODEL).iterdir()) == []
