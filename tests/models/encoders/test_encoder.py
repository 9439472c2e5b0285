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
from small_siglip import save_siglip
from transformers import (
    AutoImageProcessor,
    AutoModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    Siglip2Config,
    Siglip2Model,
    SiglipModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.mobilenet_v2.image_processing_pil_mobilenet_v2 import MobileNetV2ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from models.encoders.encoder import Encoder, shared_encoder
from models.encoders.files import encoder_folder, encoder_id
from models.encoders.small_siglip import save_untrained_siglip
from models.errors import LensError

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_siglip(tmp_path_factory.mktemp("encoders") / "small-siglip")


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
        model = AutoModel.from_pretrained(tmp_path).eval()
        processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
        with torch.no_grad():
            wanted = model.get_image_features(**processor(images=photos, return_tensors="pt")).pooler_output.numpy()
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
        np.testing.assert_allclose(clip.embed(photos), wanted, atol=1e-6)


def save_mobilenet(folder: Path) -> None:
    """As google/mobilenet_v2_… are kept: a classifier, whose embedding is what its classes are told from."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = MobileNetV2Config(image_size=64, depth_multiplier=0.35, finegrained_output=True, num_labels=3)
        model = MobileNetV2ForImageClassification(config)
        for weights in model.parameters():
            if weights.ndim == 4:
                # Its own starting values are so small that nothing reaches the last layer.
                torch.nn.init.kaiming_normal_(weights)
    model.save_pretrained(folder)
    crop = {"height": 64, "width": 64}
    MobileNetV2ImageProcessorPil(size={"shortest_edge": 73}, crop_size=crop).save_pretrained(folder)


def save_dinov2(folder: Path) -> None:
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Dinov2Model(config).save_pretrained(folder)
    crop = {"height": 28, "width": 28}
    BitImageProcessorPil(size={"shortest_edge": 32}, crop_size=crop).save_pretrained(folder)


class TestModelsForImagesAlone:
    def test_mobilenet_s_embedding_is_the_mean_of_its_last_feature_map(
        self, tmp_path: Path, photos: list[Image.Image]
    ) -> None:
        save_mobilenet(tmp_path)
        encoder = Encoder.load(str(tmp_path))
        # The processor scales the shorter side to 73 before it cuts out 64: decoding must keep that many pixels.
        assert encoder.image_side == 73
        model = AutoModel.from_pretrained(tmp_path).eval()
        pixels = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")(images=photos, return_tensors="pt")
        with torch.no_grad():
            wanted = model(**pixels).last_hidden_state.mean(dim=(2, 3)).numpy()
        assert encoder.dims == wanted.shape[1]
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
        np.testing.assert_allclose(encoder.embed(photos), wanted, atol=1e-5)

    def test_dinov2_s_embedding_is_its_class_token(self, tmp_path: Path, photos: list[Image.Image]) -> None:
        save_dinov2(tmp_path)
        encoder = Encoder.load(str(tmp_path))
        assert (encoder.dims, encoder.image_side) == (32, 32)
        model = AutoModel.from_pretrained(tmp_path).eval()
        pixels = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")(images=photos, return_tensors="pt")
        with torch.no_grad():
            # The last hidden states are normalised already; the class token comes first.
            wanted = model(**pixels).last_hidden_state[:, 0].numpy()
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
        np.testing.assert_allclose(encoder.embed(photos), wanted, atol=1e-5)


class TestLoading:
    def test_keeps_no_text_tower_in_memory(self, encoder: Encoder) -> None:
        assert encoder.network is not None
        assert not [name for name, _ in encoder.network.tower.named_parameters() if "text_model" in name]

    def test_siglip_2_of_a_fixed_size_is_siglip_and_of_any_size_is_refused(self, tmp_path: Path) -> None:
        Siglip2ImageProcessorPil().save_pretrained(tmp_path)
        tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        Siglip2Model(
            Siglip2Config(text_config=tower | {"vocab_size": 100, "projection_size": 32}, vision_config=tower)
        ).save_pretrained(tmp_path)
        with pytest.raises(LensError, match="scales images to no fixed size"):
            Encoder.load(str(tmp_path))


CODE = """
import torch
from transformers import PreTrainedConfig, PreTrainedModel
class TinyConfig(PreTrainedConfig):
    model_type = "tiny_with_code"
class TinyModel(PreTrainedModel):
    config_class = TinyConfig
    def __init__(self, config):
        super().__init__(config)
        self.mix = torch.nn.Linear(3, 5)
        self.post_init()
    def get_image_features(self, pixel_values):
        return self.mix(pixel_values.mean(dim=(2, 3)))
"""


class TestOwnCode:
    """As line-corporation/clip-japanese-base: a model of a kind of its own, whose code comes with the weights."""

    COMMIT = "0123456789abcdef0123456789abcdef01234567"

    @pytest.fixture
    def source(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        """A model of the hub as the hub's client caches it, pinned to a commit."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
        monkeypatch.syspath_prepend(str(tmp_path / "modules"))
        folder = tmp_path / "hub" / "models--someone--tiny" / "snapshots" / self.COMMIT
        folder.mkdir(parents=True)
        (folder / "modeling_tiny.py").write_text(CODE)
        auto_map = {"AutoConfig": "modeling_tiny.TinyConfig", "AutoModel": "modeling_tiny.TinyModel"}
        (folder / "config.json").write_text(json.dumps({"model_type": "tiny_with_code", "auto_map": auto_map}))
        chance = torch.Generator().manual_seed(0)
        weights = {"mix.weight": torch.randn(5, 3, generator=chance), "mix.bias": torch.zeros(5)}
        save_file(weights, folder / WEIGHTS, {"format": "pt"})
        SiglipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
        refs = tmp_path / "hub" / "models--someone--tiny" / "refs"
        refs.mkdir()
        (refs / "main").write_text(self.COMMIT)
        return f"someone/tiny@{self.COMMIT}"

    def test_runs_when_it_is_pinned_and_trusted(self, source: str, photos: list[Image.Image]) -> None:
        encoder = Encoder.load(source, trusted_code=[source])
        weights = load_file(encoder_folder(source) / WEIGHTS)
        processor = SiglipImageProcessorPil(size={"height": 16, "width": 16})
        pixels = processor(images=photos, return_tensors="pt")["pixel_values"]
        wanted = (pixels.mean(dim=(2, 3)) @ weights["mix.weight"].T).numpy()
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
        np.testing.assert_allclose(encoder.embed(photos), wanted, atol=1e-5)
        assert encoder.encoder_id.startswith("tiny-")

    def test_does_not_run_unasked(self, source: str) -> None:
        with pytest.raises(LensError, match="if you trust it, add it to LENS_ENCODER_TRUSTED_CODE"):
            Encoder.load(source)

    @pytest.mark.parametrize("revision", ["", "@main"])
    def test_that_is_not_pinned_does_not_run_even_when_it_is_trusted(self, source: str, revision: str) -> None:
        moving = source.partition("@")[0] + revision
        with pytest.raises(LensError, match="pin the commit that you have read"):
            Encoder.load(moving, trusted_code=[moving])

    def test_of_another_model_does_not_run(self, source: str) -> None:
        config = encoder_folder(source) / "config.json"
        named = json.loads(config.read_text())
        named["auto_map"]["AutoModel"] = "someone/else--modeling_tiny.TinyModel"
        config.write_text(json.dumps(named))
        with pytest.raises(LensError, match="code of another model, which its commit does not pin"):
            Encoder.load(source, trusted_code=[source])

    def test_of_a_folder_does_not_run(self, source: str, tmp_path: Path) -> None:
        folder = str(shutil.copytree(encoder_folder(source), tmp_path / "tiny"))
        with pytest.raises(LensError, match="pin the commit"):
            Encoder.load(folder, trusted_code=[folder])

    def test_counts_for_the_id(self, source: str, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(encoder_folder(source), tmp_path / "tiny"))
        before = encoder_id(source, folder)
        (folder / "modeling_tiny.py").write_text(CODE.replace("mean", "amax"))
        assert encoder_id(source, folder) != before


class TestPixels:
    def test_are_the_thumbnail_without_its_mean(self) -> None:
        pixels = np.zeros((4, 4, 3), np.uint8)
        # One quadrant is white: of four thumbnail pixels with three channels, three are 255 and nine are 0.
        pixels[:2, :2] = 255
        encoder = Encoder.load("pixels:2")
        assert (encoder.encoder_id, encoder.source) == ("pixels-2", "pixels:2")
        assert (encoder.dims, encoder.image_side) == (12, 2)
        wanted = np.array([3.0] * 3 + [-1.0] * 9) / 6
        np.testing.assert_allclose(encoder.embed([Image.fromarray(pixels)]), [wanted], atol=1e-6)

    def test_are_of_unit_length_whatever_the_image(self, photos: list[Image.Image]) -> None:
        vectors = Encoder.load("pixels:16").embed([*photos, *(Image.new("RGB", (9, 9), (n,) * 3) for n in (0, 7, 255))])
        assert vectors.dtype == np.float32
        assert vectors.shape == (len(photos) + 3, 768)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)

    def test_of_one_grey_are_like_nothing_else(self, photos: list[Image.Image]) -> None:
        *others, grey = Encoder.load("pixels:8").embed([*photos, Image.new("RGB", (40, 40), (7, 7, 7))])
        np.testing.assert_allclose(np.vstack(others) @ grey, 0, atol=1e-5)

    def test_brightness_does_not_count(self, photos: list[Image.Image]) -> None:
        dark = [photo.point(lambda value: value // 2) for photo in photos]
        bright = [photo.point(lambda value: value + 100) for photo in dark]
        encoder = Encoder.load("pixels:4")
        np.testing.assert_allclose(encoder.embed(dark), encoder.embed(bright), atol=1e-2)

    @pytest.mark.parametrize("source", ["pixels:", "pixels:0", "pixels:16x16", "pixels:-3", "pixels:1000"])
    def test_without_a_side_are_refused(self, source: str) -> None:
        with pytest.raises(LensError, match="as in pixels:16"):
            Encoder.load(source)


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

    def test_a_folder_that_is_named_by_its_id_keeps_it(self, folder: Path, tmp_path: Path, encoder: Encoder) -> None:
        kept = Path(shutil.copytree(folder, tmp_path / encoder.encoder_id))
        assert encoder_id(str(kept), kept) == encoder.encoder_id
        long = f"{'x' * 48}-{encoder.encoder_id[-8:]}"
        assert encoder_id(f"gs://bucket/encoders/{long}/", folder) == long

    def test_a_name_that_ends_in_another_hash_is_a_name(self, folder: Path, encoder: Encoder) -> None:
        assert encoder_id("/models/small-00000000", folder) == f"small-00000000-{encoder.encoder_id[-8:]}"

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
        (copy / "tokenizer.json").write_text("{}")
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

    def test_a_seed_gives_the_demo_s_encoder_the_same_weights(self, tmp_path: Path) -> None:
        torch.manual_seed(999)
        first, again = (save_untrained_siglip(tmp_path / name / "demo") for name in ("first", "again"))
        drawn = torch.rand(1)
        other = save_untrained_siglip(tmp_path / "other" / "demo", seed=1)
        assert encoder_id(str(again), again) == encoder_id(str(first), first)
        assert encoder_id(str(other), other) != encoder_id(str(first), first)
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
