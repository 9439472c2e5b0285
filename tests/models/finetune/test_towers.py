"""The towers: a parent taken apart as it was saved, made what the recipe trains, and put together again."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import DIMS, RECIPE, SIDE, TITLE_TOKENS, picture, title
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from models.encoders.encoder import Encoder
from models.errors import LensError
from models.finetune.optimisation import optimiser
from models.finetune.recipe import Recipe
from models.finetune.sigmoid_loss import INITIAL_BIAS, INITIAL_LOG_SCALE, sigmoid_loss
from models.finetune.towers import Towers, tower_of

PICTURES = [picture(seed, size) for seed, size in enumerate([(24, 24), (40, 18), (16, 16), (9, 30)])]
TITLES = [title(number) for number in range(5)]


def recipe(**changes: object) -> Recipe:
    return Recipe.model_validate({**RECIPE.model_dump(), **changes})


@pytest.fixture(params=["siglip", "conv_siglip"])
def parent(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


class TestEmbedding:
    def test_images_are_embedded_as_the_catalog_is(self, parent: Path) -> None:
        towers = Towers.load(parent).eval()
        embeddings = towers.embed_images(PICTURES, batch_size=3)
        assert (embeddings.shape, embeddings.dtype) == ((4, DIMS), np.float32)
        np.testing.assert_allclose(embeddings, Encoder.load(str(parent)).embed(PICTURES), atol=1e-6)

    def test_training_sees_what_the_catalogs_preprocessing_makes(self, parent: Path) -> None:
        towers = Towers.load(parent).eval()
        views = [np.asarray(image.resize((SIDE, SIDE), 3)) for image in PICTURES]
        pixels = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)
        with torch.no_grad():
            images, _ = towers(pixels, towers.tokenize.ids(["x"] * 4))
        np.testing.assert_allclose(images.numpy(), towers.embed_images(PICTURES), atol=1e-5)

    def test_titles_have_unit_length_however_they_are_batched(self, parent: Path) -> None:
        towers = Towers.load(parent).eval()
        embeddings = towers.embed_titles(TITLES)
        assert (embeddings.shape, embeddings.dtype) == ((5, DIMS), np.float32)
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(embeddings, towers.embed_titles(TITLES, batch_size=2), atol=1e-6)


class TestTokens:
    @pytest.mark.parametrize("titles", [["a"], ["a", "red bag"], ["very " * 40 + "long"], [""]])
    def test_are_padded_and_cut_to_the_full_length(self, siglip: Path, titles: list[str]) -> None:
        # Padded to the longest of a batch, a title's embedding would be that of another place.
        tokens = Towers.load(siglip).tokenize.ids(titles)
        assert (tokens.shape, tokens.dtype) == ((len(titles), TITLE_TOKENS), torch.int64)

    def test_a_title_is_the_same_in_any_batch(self, siglip: Path) -> None:
        tokenize = Towers.load(siglip).tokenize.ids
        assert torch.equal(tokenize(["red bag"])[0], tokenize(["a much longer title", "red bag"])[1])


class TestSaving:
    def test_what_is_saved_is_loaded_and_embeds_the_same(self, parent: Path, tmp_path: Path) -> None:
        towers = Towers.load(parent)
        with torch.no_grad():
            for parameter in towers.parameters():
                parameter.mul_(1.1)
        towers.eval().save(tmp_path / "saved")
        again = Towers.load(tmp_path / "saved").eval()
        np.testing.assert_array_equal(again.embed_titles(TITLES), towers.embed_titles(TITLES))
        images = Encoder.load(str(tmp_path / "saved")).embed(PICTURES)
        np.testing.assert_allclose(images, towers.embed_images(PICTURES), atol=1e-6)
        assert np.abs(images - Encoder.load(str(parent)).embed(PICTURES)).max() > 1e-3

    def test_low_rank_updates_are_merged_and_the_training_goes_on(self, parent: Path, tmp_path: Path) -> None:
        towers = Towers.load(parent)
        towers.prepare(recipe(lora_rank=2))
        with torch.no_grad():
            for name, parameter in towers.named_parameters():
                if "lora_" in name:
                    parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
        towers.eval().save(tmp_path / "saved")
        again = Towers.load(tmp_path / "saved").eval()
        np.testing.assert_allclose(again.embed_titles(TITLES), towers.embed_titles(TITLES), atol=1e-5)
        np.testing.assert_allclose(again.embed_images(PICTURES), towers.embed_images(PICTURES), atol=1e-5)
        assert np.abs(again.embed_titles(TITLES) - Towers.load(parent).eval().embed_titles(TITLES)).max() > 1e-2
        # Saving merged a copy.
        assert any("lora_" in name for name, _ in towers.named_parameters())


def step(towers: Towers) -> None:
    """One step of a training on a batch of four."""
    chosen = optimiser(towers, recipe(learning_rate=1e-3))
    pixels = torch.randint(0, 256, (4, 3, towers.side, towers.side), dtype=torch.uint8)
    images, texts = towers(pixels, towers.tokenize.ids(["red bag", "blue shoe", "lamp", "chair"]))
    sigmoid_loss(images, texts, towers.log_scale, towers.bias).backward()
    chosen.step()


class TestStarts:
    def test_what_was_never_learnt_starts_as_published(self, siglip: Path) -> None:
        towers = Towers.load(siglip)
        assert (towers.log_scale.item(), towers.bias.item()) == (0, 0)
        towers.prepare(recipe(batch_size=32_768))
        assert towers.log_scale.item() == pytest.approx(INITIAL_LOG_SCALE)
        assert towers.bias.item() == INITIAL_BIAS

    @pytest.mark.parametrize("kind", ["siglip", "conv_siglip"])
    def test_what_was_never_learnt_starts_at_its_batch_s_share_of_matching_pairs(
        self, kind: str, request: pytest.FixtureRequest
    ) -> None:
        towers = Towers.load(request.getfixturevalue(kind))
        towers.prepare(recipe(batch_size=128))
        assert towers.bias.item() == pytest.approx(-math.log(128))

    @pytest.mark.parametrize(("log_scale", "bias"), [(4.7, -12.9), (0.0, -3.0), (2.0, 0.0)])
    def test_what_a_parent_has_learnt_stays(self, siglip: Path, tmp_path: Path, log_scale: float, bias: float) -> None:
        towers = Towers.load(siglip)
        with torch.no_grad():
            towers.log_scale.fill_(log_scale)
            towers.bias.fill_(bias)
        towers.save(tmp_path)
        again = Towers.load(tmp_path)
        again.prepare(recipe())
        assert again.log_scale.item() == pytest.approx(log_scale)
        assert again.bias.item() == pytest.approx(bias)


class TestWhatLearns:
    def learning(self, towers: Towers) -> set[str | None]:
        return {tower_of(name) for name, parameter in towers.named_parameters() if parameter.requires_grad}

    def test_everything_by_default(self, parent: Path) -> None:
        towers = Towers.load(parent)
        towers.prepare(recipe())
        assert all(parameter.requires_grad for parameter in towers.parameters())
        assert self.learning(towers) == {"image", "text", None}

    @pytest.mark.parametrize(("frozen", "other"), [("image", "text"), ("text", "image")])
    def test_a_frozen_tower_does_not(self, parent: Path, frozen: str, other: str) -> None:
        towers = Towers.load(parent)
        towers.prepare(recipe(freeze=[frozen]))
        assert self.learning(towers) == {other, None}

    @pytest.mark.parametrize(
        ("kind", "first", "later"),
        [
            ("siglip", ["embeddings", "encoder.layers.0"], ["encoder.layers.1", "post_layernorm", "head"]),
            ("conv_siglip", ["embedder", "encoder.stages.0"], ["encoder.stages.1"]),
            (
                "imagenet_siglip",
                ["timm_model.conv_stem", "timm_model.blocks.0"],
                ["timm_model.blocks.1", "timm_model.conv_head"],
            ),
        ],
    )
    def test_the_image_tower_s_first_layers_may_stay(
        self, kind: str, first: list[str], later: list[str], request: pytest.FixtureRequest
    ) -> None:
        towers = Towers.load(request.getfixturevalue(kind))
        towers.prepare(recipe(freeze_image_layers=1, batch_size=4))
        before = {name: value.clone() for name, value in towers.state_dict().items()}
        step(towers.train())
        changed = {
            name.removeprefix("model.")
            for name, value in towers.state_dict().items()
            if not torch.equal(value, before[name])
        }
        assert not [name for name in changed if any(f"vision_model.{part}." in name for part in first)]
        for part in (*(f"vision_model.{part}." for part in later), "text_model.", "logit_bias"):
            assert [name for name in changed if part in name], part
        # All batch norms of the image tower keep their statistics; the one between it and the projection learns them.
        statistics = {name for name in changed if "running" in name or "num_batches" in name}
        assert not [name for name in statistics if "vision_model" in name]
        assert bool(statistics) == (kind != "siglip")

    def test_temperature_and_bias_are_of_no_tower_and_nothing_else(self, parent: Path) -> None:
        names = {name for name, _ in Towers.load(parent).named_parameters() if tower_of(name) is None}
        assert names == {"model.logit_scale", "model.logit_bias"}

    def test_low_rank_updates_of_one_tower(self, siglip: Path) -> None:
        towers = Towers.load(siglip)
        towers.prepare(recipe(lora_rank=2, freeze=["image"]))
        learning = {name for name, parameter in towers.named_parameters() if parameter.requires_grad}
        assert learning - {"model.logit_scale", "model.logit_bias"} == {
            name for name, _ in towers.named_parameters() if "lora_" in name and "text_model" in name
        }


class TestRefusals:
    def test_more_frozen_layers_than_there_are(self, siglip: Path) -> None:
        with pytest.raises(
            LensError, match="freeze_image_layers is 3, but the parent's image tower has 2 layers: give"
        ):
            Towers.load(siglip).prepare(recipe(freeze_image_layers=3))

    def test_no_such_folder(self, tmp_path: Path) -> None:
        with pytest.raises(LensError, match="parent .*nothing: its model cannot be loaded"):
            Towers.load(tmp_path / "nothing")

    def test_no_tokenizer(self, siglip: Path, tmp_path: Path) -> None:
        for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
            (tmp_path / name).write_bytes((siglip / name).read_bytes())
        with pytest.raises(LensError, match=f"parent {tmp_path}: its tokenizer cannot be loaded"):
            Towers.load(tmp_path)

    def test_clip_which_has_no_bias(self, siglip: Path, tmp_path: Path) -> None:
        tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = CLIPConfig(
            text_config={**tower, "vocab_size": 2048},
            vision_config={**tower, "image_size": 32, "patch_size": 16},
            projection_dim=16,
        )
        CLIPModel(config).save_pretrained(tmp_path)
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path)
        Towers.load(siglip).tokenize.tokenizer.save_pretrained(tmp_path)
        with pytest.raises(LensError, match="is a clip model without logit_bias: fine-tune a SigLIP model"):
            Towers.load(tmp_path)

    def test_dinov2_which_reads_no_titles(self, tmp_path: Path) -> None:
        config = Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
        Dinov2Model(config).save_pretrained(tmp_path)
        BitImageProcessorPil(size={"shortest_edge": 28}, crop_size=28).save_pretrained(tmp_path)
        with pytest.raises(LensError, match="is a dinov2 model without get_image_features: fine-tune a SigLIP model"):
            Towers.load(tmp_path)

    def test_a_missing_weight(self, siglip: Path, tmp_path: Path) -> None:
        Towers.load(siglip).save(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        del weights["text_model.head.weight"]
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(LensError, match="lacks weights, such as text_model.head.weight"):
            Towers.load(tmp_path)

    def test_images_of_no_fixed_size(self, siglip: Path, tmp_path: Path) -> None:
        Towers.load(siglip).save(tmp_path)
        file = tmp_path / "preprocessor_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "size": {"shortest_edge": 16}}))
        with pytest.raises(LensError, match="scales images to no fixed size"):
            Towers.load(tmp_path)
