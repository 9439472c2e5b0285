"""The optimiser: which parameters decay, how fast each learns, and how the rate rises and falls."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import RECIPE
from torch import nn

from models.finetune.optimisation import optimiser, parameter_groups, schedule
from models.finetune.recipe import Recipe
from models.finetune.towers import Towers


def recipe(**changes: object) -> Recipe:
    return Recipe.model_validate({**RECIPE.model_dump(), "weight_decay": 0.01, "learning_rate": 1e-3, **changes})


def prepared(parent: Path, of: Recipe) -> Towers:
    towers = Towers.load(parent)
    towers.prepare(of)
    return towers


def settings_by_name(towers: nn.Module, of: Recipe) -> dict[str, dict[str, Any]]:
    """Learning rate and weight decay, as a share per step, of each parameter that learns."""
    names = {id(parameter): name for name, parameter in towers.named_parameters()}
    return {
        names[id(p)]: {"lr": group["lr"], "weight_decay": pytest.approx(group["lr"] * group["weight_decay"])}
        for group in parameter_groups(towers, of)
        for p in group["params"]
    }


@pytest.mark.parametrize("kind", ["siglip", "conv_siglip"])
@pytest.mark.parametrize(
    "changes", [{}, {"layer_decay": 0.5}, {"freeze": ["image"]}, {"lora_rank": 2}, {"scalar_learning_rate": 0.1}]
)
def test_what_learns_is_in_one_group_and_nothing_else(
    kind: str, changes: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    of = recipe(**changes)
    towers = prepared(request.getfixturevalue(kind), of)
    counts = Counter(id(parameter) for group in parameter_groups(towers, of) for parameter in group["params"])
    assert counts == Counter(id(parameter) for parameter in towers.parameters() if parameter.requires_grad)


class TestDecay:
    def test_is_of_matrices_alone(self, siglip: Path) -> None:
        found = settings_by_name(prepared(siglip, recipe()), recipe())
        for name, group in found.items():
            free = ("bias", "norm", "token_embedding", "position_embedding", "probe", "logit")
            assert group["weight_decay"] == (0 if any(part in name for part in free) else 0.01), name

    @pytest.mark.parametrize(
        ("name", "decay"),
        [
            ("model.text_model.encoder.layers.0.mlp.fc1.weight", 0.01),
            ("model.text_model.encoder.layers.0.mlp.fc1.bias", 0),
            ("model.vision_model.encoder.layers.1.layer_norm1.weight", 0),
            ("model.text_model.embeddings.token_embedding.weight", 0),
            ("model.vision_model.embeddings.position_embedding.weight", 0),
            ("model.logit_scale", 0),
            ("model.logit_bias", 0),
        ],
    )
    def test_by_name(self, siglip: Path, name: str, decay: float) -> None:
        assert settings_by_name(prepared(siglip, recipe()), recipe())[name]["weight_decay"] == decay

    def test_batch_norms_have_none(self, conv_siglip: Path) -> None:
        found = settings_by_name(prepared(conv_siglip, recipe()), recipe())
        assert all(group["weight_decay"] == 0 for name, group in found.items() if "norm" in name)
        assert found["model.visual_projection.weight"]["weight_decay"] == 0.01

    @pytest.mark.parametrize("changes", [{}, {"learning_rate": 1e-4}, {"layer_decay": 0.5}])
    def test_a_step_takes_the_same_share_at_any_rate(self, siglip: Path, changes: dict[str, Any]) -> None:
        of = recipe(warmup_share=0, **changes)
        towers = prepared(siglip, of)
        matrix = dict(towers.named_parameters())["model.text_model.encoder.layers.0.mlp.fc1.weight"]
        chosen = optimiser(towers, of)
        falling = schedule(chosen, of, 4)
        shares = []
        for _ in range(4):
            for parameter in towers.parameters():
                parameter.grad = torch.zeros_like(parameter)
            before = matrix.detach().clone()
            chosen.step()
            falling.step()
            shares.append(1 - (matrix / before).mean().item())
        # A cosine from 1 to 0.
        assert shares == pytest.approx([0.01 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)], rel=1e-2)


class TestRates:
    @pytest.mark.parametrize(
        ("name", "halvings"),
        [
            ("model.vision_model.head.mlp.fc1.weight", 0),
            ("model.vision_model.post_layernorm.weight", 0),
            ("model.text_model.head.weight", 0),
            ("model.logit_scale", 0),
            ("model.vision_model.encoder.layers.1.mlp.fc1.weight", 1),
            ("model.text_model.encoder.layers.1.layer_norm1.bias", 1),
            ("model.vision_model.encoder.layers.0.mlp.fc1.weight", 2),
            ("model.text_model.encoder.layers.0.self_attn.q_proj.weight", 2),
            ("model.vision_model.embeddings.patch_embedding.weight", 3),
            ("model.text_model.embeddings.token_embedding.weight", 3),
        ],
    )
    def test_halve_from_layer_to_layer(self, siglip: Path, name: str, halvings: int) -> None:
        of = recipe(layer_decay=0.5)
        assert settings_by_name(prepared(siglip, of), of)[name]["lr"] == pytest.approx(1e-3 / 2**halvings)

    def test_are_one_without_decay(self, siglip: Path) -> None:
        assert {group["lr"] for group in parameter_groups(prepared(siglip, recipe()), recipe())} == {1e-3}

    def test_of_temperature_and_bias(self, siglip: Path) -> None:
        of = recipe(scalar_learning_rate=0.1)
        found = settings_by_name(prepared(siglip, of), of)
        assert {name for name, group in found.items() if group["lr"] == 0.1} == {
            "model.logit_scale",
            "model.logit_bias",
        }

    def test_of_the_image_tower_without_its_projection(self, conv_siglip: Path) -> None:
        of = recipe(image_learning_rate=1e-4)
        found = settings_by_name(prepared(conv_siglip, of), of)
        assert {name for name, group in found.items() if group["lr"] == 1e-4} == {
            name for name in found if "vision_model" in name
        }
        assert found["model.visual_projection.weight"]["lr"] == 1e-3

    def test_the_recipes_own_comes_last(self, siglip: Path) -> None:
        of = recipe(scalar_learning_rate=0.1, layer_decay=0.5)
        assert parameter_groups(prepared(siglip, of), of)[-1]["lr"] == 1e-3


class TestSchedule:
    def rates(self, of: Recipe, steps: int) -> list[float]:
        """Of each step, as a share of the recipe's."""
        made = optimiser(nn.Linear(2, 2), of)
        scheduled = schedule(made, of, steps)
        found = []
        for _ in range(steps):
            found.append(made.param_groups[-1]["lr"] / of.learning_rate)
            made.step()
            scheduled.step()
        return [*found, made.param_groups[-1]["lr"] / of.learning_rate]

    def test_rises_in_a_line_and_falls_as_a_cosine(self) -> None:
        rates = self.rates(recipe(warmup_share=0.2), 100)
        assert rates[:21] == pytest.approx([step / 20 for step in range(21)])
        assert rates[60] == pytest.approx(0.5)
        assert rates[100] == pytest.approx(0, abs=1e-9)
        assert all(later < earlier for earlier, later in pairwise(rates[20:]))

    def test_without_warm_up_it_starts_at_the_top(self) -> None:
        assert self.rates(recipe(warmup_share=0), 10)[0] == 1

    def test_every_group_follows(self, siglip: Path) -> None:
        of = recipe(layer_decay=0.5, warmup_share=0.5)
        made = optimiser(prepared(siglip, of), of)
        schedule(made, of, 10)
        assert {group["lr"] for group in made.param_groups} == {0}
        assert made.defaults["betas"] == of.betas
