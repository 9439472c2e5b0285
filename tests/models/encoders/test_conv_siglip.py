"""SigLIP with convolutions: a model of transformers like any other, to whoever loads, embeds or trains it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import DIMS, SIDE, TITLE_TOKENS, picture, save_conv_siglip
from transformers import AutoConfig, AutoModel

from models.encoders.conv_siglip import ConvSiglipConfig, ConvSiglipModel
from models.encoders.encoder import Encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_conv_siglip(tmp_path_factory.mktemp("encoders") / "conv")


@pytest.fixture(scope="module")
def model(folder: Path) -> ConvSiglipModel:
    loaded = AutoModel.from_pretrained(folder)
    assert isinstance(loaded, ConvSiglipModel)
    return loaded


def test_transformers_loads_it_by_its_folder(folder: Path, model: ConvSiglipModel) -> None:
    again = AutoModel.from_pretrained(folder)
    assert model.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())


def test_its_code_is_imported_only_for_a_config_that_names_it(folder: Path) -> None:
    code = f"""
import sys
from models.encoders.encoder import Encoder
from models.finetune.towers import Towers
architecture = "models.encoders.conv_siglip"
assert architecture not in sys.modules
assert Encoder.load({str(folder)!r}).dims == {DIMS}
assert architecture in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_its_config_survives_being_saved(folder: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    assert isinstance(config, ConvSiglipConfig)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert again.to_diff_dict() == config.to_diff_dict()
    assert again.vision_config.hidden_sizes == [8, 16]
    assert again.text_config.max_position_embeddings == TITLE_TOKENS


def test_both_towers_end_in_one_space(model: ConvSiglipModel) -> None:
    with torch.inference_mode():
        images = model.get_image_features(torch.randn(3, 3, SIDE, SIDE))
        texts = model.get_text_features(torch.zeros(3, TITLE_TOKENS, dtype=torch.int64))
    assert images.shape == texts.shape == (3, DIMS)


def test_an_image_does_not_depend_on_its_batch(folder: Path) -> None:
    # Batch norms have their statistics, once trained or not.
    encoder = Encoder.load(str(folder))
    pictures = [picture(seed) for seed in range(5)]
    alone = np.concatenate([encoder.embed([image]) for image in pictures])
    np.testing.assert_allclose(encoder.embed(pictures), alone, atol=1e-6)


def test_untrained_images_are_told_apart_in_training() -> None:
    # Rectified means all point one way; centred, they do not.
    torch.manual_seed(0)
    config = ConvSiglipConfig(
        vision_config={"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    )
    made = ConvSiglipModel(config).train()
    pixels = torch.from_numpy(np.stack([np.asarray(picture(seed, (32, 32))) for seed in range(32)]))
    features = made.get_image_features(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)
    cosines = torch.corrcoef(torch.nn.functional.normalize(features)) - torch.eye(32)
    assert cosines.abs().mean() < 0.5
