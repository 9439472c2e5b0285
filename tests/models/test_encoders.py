"""Encoders: an embedding must depend on the image and the weights alone, and a folder that is no encoder must say so.

The model is a small SigLIP with untrained weights: the architecture, the file format and the preprocessing are the real
ones. Transformers itself is the reference.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    SiglipModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from models.demo_encoder import save_untrained_siglip
from models.encoder_files import encoder_folder, encoder_id
from models.encoders import Encoder, shared_encoder
from models.errors import LensError

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained_siglip(tmp_path_factory.mktemp("encoders") / "small-siglip")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder.load(str(folder))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The same files elsewhere, in a folder of the same name, to be changed by a test."""
    return Path(shutil.copytree(folder, tmp_path / folder.name))


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    chance = np.random.default_rng(0)
    sizes = [(64, 64), (200, 80), (37, 90), (300, 300), (8, 8), (64, 65), (120, 64)]
    return [Image.fromarray(chance.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def change_weight(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["vision_model.post_layernorm.bias"][0] += 1e-3
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def change_json(name: str, key: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    return change


class TestEmbed:
    def test_gives_float32_vectors_of_unit_length(self, encoder: Encoder, photos: list[Image.Image]) -> None:
        vectors = encoder.embed(photos)
        assert vectors.dtype == np.float32
        assert vectors.shape == (len(photos), encoder.dims) == (len(photos), 192)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)

    def test_an_image_has_one_vector_whatever_its_batch(self, encoder: Encoder, photos: list[Image.Image]) -> None:
        together = encoder.embed(photos)
        alone = np.vstack([encoder.embed([photo]) for photo in photos])
        np.testing.assert_allclose(together, alone, atol=1e-5)
        np.testing.assert_allclose(encoder.embed(photos[::-1])[::-1], alone, atol=1e-5)

    def test_two_images_have_two_vectors(self, encoder: Encoder) -> None:
        red, blue = encoder.embed([Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")])
        assert np.abs(red - blue).max() > 1e-3

    def test_agrees_with_transformers(self, folder: Path, encoder: Encoder, photos: list[Image.Image]) -> None:
        model = AutoModel.from_pretrained(folder).eval()
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        with torch.no_grad():
            output = model.get_image_features(**processor(images=photos, return_tensors="pt"))
        wanted = output.pooler_output.numpy()
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
        np.testing.assert_allclose(encoder.embed(photos), wanted, atol=1e-6)

    def test_no_images_give_no_vectors(self, encoder: Encoder) -> None:
        assert encoder.embed([]).shape == (0, 192)

    def test_half_precision_weights_are_computed_in_float32(
        self, copy: Path, folder: Path, encoder: Encoder, photos: list[Image.Image]
    ) -> None:
        SiglipModel.from_pretrained(folder).half().save_pretrained(copy)
        vectors = Encoder.load(str(copy)).embed(photos)
        np.testing.assert_allclose(vectors, encoder.embed(photos), atol=5e-3)
        SiglipModel.from_pretrained(copy, dtype=torch.float32).save_pretrained(copy)
        np.testing.assert_allclose(vectors, Encoder.load(str(copy)).embed(photos), atol=1e-6)

    def test_a_model_that_scales_the_shorter_side_works_too(self, tmp_path: Path, photos: list[Image.Image]) -> None:
        tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = CLIPConfig(
            text_config=tower | {"vocab_size": 100},
            vision_config=tower | {"image_size": 32, "patch_size": 8},
            projection_dim=16,
        )
        CLIPModel(config).save_pretrained(tmp_path)
        crop = {"height": 32, "width": 32}
        CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size=crop).save_pretrained(tmp_path)
        clip = Encoder.load(str(tmp_path))
        assert (clip.dims, clip.image_side) == (16, 40)
        assert clip.embed(photos).shape == (len(photos), 16)


class TestIdentity:
    def test_is_the_name_and_the_content(self, folder: Path, copy: Path, encoder: Encoder) -> None:
        assert encoder.encoder_id.startswith("small-siglip-")
        assert Encoder.load(str(copy)).encoder_id == encoder.encoder_id
        assert encoder_id(f"{folder}/", folder) == encoder.encoder_id

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(change_weight, id="a weight"),
            pytest.param(change_json("config.json", "initializer_factor", 2.0), id="the config"),
            pytest.param(change_json("preprocessor_config.json", "image_mean", [0.4, 0.4, 0.4]), id="preprocessing"),
        ],
    )
    def test_changes_with(self, copy: Path, encoder: Encoder, change: Callable[[Path], None]) -> None:
        change(copy)
        assert encoder_id(str(copy), copy) != encoder.encoder_id

    def test_changes_with_preprocessing_as_newer_folders_keep_it(self, copy: Path) -> None:
        processing = json.loads((copy / "preprocessor_config.json").read_text())
        (copy / "preprocessor_config.json").unlink()
        path = copy / "processor_config.json"
        path.write_text(json.dumps({"image_processor": processing}))
        before = Encoder.load(str(copy)).encoder_id
        path.write_text(json.dumps({"image_processor": processing | {"image_mean": [0.4, 0.4, 0.4]}}))
        assert Encoder.load(str(copy)).encoder_id != before

    def test_does_not_change_with_a_note_beside_the_files(self, copy: Path, encoder: Encoder) -> None:
        (copy / "README.md").write_text("bought in March")
        assert encoder_id(str(copy), copy) == encoder.encoder_id

    @pytest.mark.parametrize(
        ("source", "slug"),
        [
            ("google/siglip-base-patch16-256", "siglip-base-patch16-256"),
            ("google/siglip@a1b2c3", "siglip"),
            ("/models/My Encoder (v2)/", "my-encoder-v2"),
            (".", "encoder"),
            (f"/models/{'x' * 80}", "x" * 48),
        ],
        ids=["hub id", "hub id with a revision", "folder", "no name", "long name"],
    )
    def test_names_go_into_an_index_name(self, folder: Path, encoder: Encoder, source: str, slug: str) -> None:
        assert encoder_id(source, folder) == f"{slug}-{encoder.encoder_id[-8:]}"

    def test_a_seed_gives_the_same_weights(self, tmp_path: Path, encoder: Encoder) -> None:
        torch.manual_seed(999)
        again = save_untrained_siglip(tmp_path / "small-siglip")
        drawn = torch.rand(1)
        other = save_untrained_siglip(tmp_path / "other" / "small-siglip", seed=1)
        assert encoder_id(str(again), again) == encoder.encoder_id
        assert encoder_id(str(other), other) != encoder.encoder_id
        # The caller's random numbers are not touched.
        torch.manual_seed(999)
        assert torch.rand(1) == drawn


def cut_weights(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def drop_a_layer(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    kept = {name: value for name, value in weights.items() if "vision_model.encoder.layers.1." not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / WEIGHTS, {"format": "pt"})


def swap_a_shape(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["vision_model.post_layernorm.bias"] = torch.zeros(3)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def pickle_the_weights(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def become_a_text_model(folder: Path) -> None:
    config = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=100
    )
    BertModel(config).save_pretrained(folder)


class TestRefused:
    @pytest.mark.parametrize(
        ("damage", "sentence"),
        [
            pytest.param(cut_weights, "cannot be loaded", id="weights cut off"),
            pytest.param(drop_a_layer, "lacks weights, such as vision_model.encoder.layers.1", id="a layer missing"),
            pytest.param(swap_a_shape, "cannot be loaded", id="a weight of another shape"),
            pytest.param(pickle_the_weights, "no safetensors weights", id="weights as a pickle"),
            pytest.param(become_a_text_model, "is a bert model, which has no image features", id="a text model"),
            pytest.param(
                lambda folder: (folder / "preprocessor_config.json").unlink(), "cannot be loaded", id="no preprocessing"
            ),
            pytest.param(lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded", id="no config"),
            pytest.param(change_json("config.json", "model_type", "nope"), "cannot be loaded", id="an unknown kind"),
            pytest.param(
                lambda folder: [path.unlink() for path in folder.iterdir()], "no safetensors weights", id="no files"
            ),
        ],
    )
    def test_a_folder_that_is_no_encoder(self, copy: Path, damage: Callable[[Path], object], sentence: str) -> None:
        damage(copy)
        with pytest.raises(LensError, match=sentence) as refusal:
            Encoder.load(str(copy))
        assert "\n" not in str(refusal.value)
        assert str(copy) in str(refusal.value)

    @pytest.mark.parametrize(
        "source", ["nobody/no-such-model", "/no/such/folder", "no such model!"], ids=["hub id", "folder", "no name"]
    )
    def test_an_unknown_encoder_with_the_remedy(self, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
        # The hub is nowhere: the test gives the same result with and without a network.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(LensError, match="give a folder written by save_pretrained") as refusal:
            Encoder.load(source)
        assert source in str(refusal.value)
        assert "\n" not in str(refusal.value)

    def test_nothing_that_failed_to_load_is_remembered(self, copy: Path) -> None:
        weights = copy / WEIGHTS
        weights.rename(copy / "elsewhere")
        with pytest.raises(LensError):
            shared_encoder(str(copy))
        (copy / "elsewhere").rename(weights)
        assert shared_encoder(str(copy)) is shared_encoder(str(copy))


def test_a_folder_below_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert encoder_folder("~/small-siglip") == folder
