"""Text towers: what transformers computes for a text, alone or among others; and encoders that have none say so."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import save_conv_siglip, save_siglip
from transformers import AutoModel, AutoTokenizer, CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

from models.encoders.encoder import Encoder
from models.encoders.texts import NoTextTowerError, TextEncoder, require_text_encoder, require_text_tower
from models.errors import LensError

TEXTS = ["red bag", "a blue shoe", "緑のランプ", "brown chair " * 40]


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_siglip(tmp_path_factory.mktemp("texts") / "siglip")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, siglip: Path) -> Path:
    """CLIP, with projections of both towers, masks, and another width of its towers than of its space."""
    folder = tmp_path_factory.mktemp("texts") / "clip"
    shutil.copytree(siglip, folder)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    end = AutoTokenizer.from_pretrained(siglip).eos_token_id
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 2048, "max_position_embeddings": 16, "eos_token_id": end},
        vision_config={**tower, "image_size": 16, "patch_size": 8},
        projection_dim=24,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    return folder


class TestEmbed:
    def test_siglip_as_transformers_does(self, siglip: Path) -> None:
        length = AutoModel.from_pretrained(siglip).config.text_config.max_position_embeddings
        tokens = AutoTokenizer.from_pretrained(siglip)(
            TEXTS, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        with torch.inference_mode():
            features = AutoModel.from_pretrained(siglip).get_text_features(input_ids=tokens["input_ids"]).pooler_output
        wanted = torch.nn.functional.normalize(features, dim=1).numpy()

        found = TextEncoder.load(str(siglip)).embed(TEXTS)

        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=1e-6)

    def test_clip_as_transformers_does(self, clip: Path) -> None:
        tokenizer, model = AutoTokenizer.from_pretrained(clip), AutoModel.from_pretrained(clip)
        wanted = []
        with torch.inference_mode():
            for text in TEXTS:
                tokens = tokenizer([text], truncation=True, max_length=16, return_tensors="pt")
                ids, mask = tokens["input_ids"], tokens["attention_mask"]
                wanted.append(model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output[0])
        unit = torch.nn.functional.normalize(torch.stack(wanted), dim=1).numpy()

        np.testing.assert_allclose(TextEncoder.load(str(clip)).embed(TEXTS), unit, atol=1e-5)

    @pytest.mark.parametrize("kind", [save_siglip, save_conv_siglip])
    def test_in_the_space_of_the_images(self, kind, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
        folder = str(kind(tmp_path / "encoder"))
        texts, images = TextEncoder.load(folder), Encoder.load(folder)
        assert texts.encoder_id == images.encoder_id
        assert texts.embed(["red bag"]).shape == (1, images.dims)

    def test_what_stands_beside_a_text_does_not_matter(self, siglip: Path, clip: Path) -> None:
        for folder in (siglip, clip):
            tower = TextEncoder.load(str(folder))
            alone = np.vstack([tower.embed([text]) for text in TEXTS])
            np.testing.assert_allclose(tower.embed(TEXTS), alone, atol=1e-5)

    def test_texts_differ(self, siglip: Path) -> None:
        one, other = TextEncoder.load(str(siglip)).embed(["red bag", "blue shoe"])
        assert one @ other < 1 - 1e-6


class TestRefusals:
    def test_thumbnails(self) -> None:
        with pytest.raises(LensError, match="encoder 'pixels:8' has no text tower: choose one of images and texts"):
            TextEncoder.load("pixels:8")

    def test_a_model_of_images_alone(self, siglip: Path, tmp_path: Path) -> None:
        config = Dinov2Config(image_size=16, patch_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
        Dinov2Model(config).save_pretrained(tmp_path)
        with pytest.raises(LensError, match="has no text tower"):
            TextEncoder.load(str(tmp_path))

    def test_which_can_be_told_without_loading_weights(self, siglip: Path, clip: Path, tmp_path: Path) -> None:
        for folder in (siglip, clip):
            require_text_tower(str(folder))
        config = Dinov2Config(image_size=16, patch_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
        Dinov2Model(config).save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").write_bytes(b"not read")
        for source in ("pixels:8", str(tmp_path)):
            with pytest.raises(NoTextTowerError):
                require_text_tower(source)
        (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
        with pytest.raises(LensError, match="has no config of a known architecture"):
            require_text_tower(str(tmp_path))

    def test_without_its_tokenizer(self, siglip: Path, tmp_path: Path) -> None:
        for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
            shutil.copy(siglip / name, tmp_path)
        with pytest.raises(LensError, match="the text tower of encoder .* cannot be loaded: "):
            TextEncoder.load(str(tmp_path))

    def test_another_encoder_by_now(self, siglip: Path) -> None:
        with pytest.raises(LensError, match="is now siglip-[0-9a-f]{8}, but other-00000000 is needed"):
            require_text_encoder(str(siglip), "other-00000000")


def test_one_copy_is_shared(siglip: Path) -> None:
    name = Encoder.load(str(siglip)).encoder_id
    assert require_text_encoder(str(siglip), name) is require_text_encoder(str(siglip), name)
