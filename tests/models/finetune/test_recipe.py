"""The recipe: its fingerprint is of its content alone, and what does not fit is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from models.errors import LensError
from models.finetune.recipe import FOR_A_SMALL_PARENT, Recipe

# Another value than the default, for every field.
OTHERS: dict[str, Any] = {
    "epochs": 4.5,
    "batch_size": 128,
    "precision": "no",
    "seed": 1,
    "learning_rate": 1e-4,
    "scalar_learning_rate": 1e-3,
    "warmup_share": 0.1,
    "weight_decay": 0.01,
    "betas": [0.9, 0.999],
    "max_gradient_norm": 2.0,
    "layer_decay": 0.8,
    "freeze": ["text"],
    "lora_rank": 8,
    "duplicates_by": None,
    "duplicates_as": "positive",
    "shuffle_buffer": 100,
    "smallest_crop": 0.9,
    "flip": 0.0,
    "jitter": 0.0,
    "validate_every": 100,
    "validation_pairs": 100,
    "validation_sessions": 0,
    "patience": 2,
    "judged_by": "titles/recall@1",
    "image_learning_rate": 1e-4,
    "freeze_image_layers": 3,
}


class TestDefaults:
    def test_are_the_papers(self) -> None:
        recipe = Recipe()
        assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (5, 256, 5e-5)

    def test_an_empty_object_is_all_defaults(self) -> None:
        assert Recipe.parse("{}") == Recipe()


class TestFingerprint:
    def test_every_field_has_another_value_here(self) -> None:
        assert OTHERS.keys() == Recipe.model_fields.keys()

    @pytest.mark.parametrize("name", OTHERS)
    def test_changes_with_any_field(self, name: str) -> None:
        assert Recipe.parse(json.dumps({name: OTHERS[name]})).fingerprint != Recipe().fingerprint

    def test_does_not_depend_on_the_fields_order(self) -> None:
        forth = Recipe.parse(json.dumps(OTHERS))
        back = Recipe.parse(json.dumps(dict(reversed(OTHERS.items()))))
        assert forth.fingerprint == back.fingerprint
        assert len(forth.fingerprint) == 16

    def test_survives_being_written_and_read(self) -> None:
        recipe = Recipe.parse(json.dumps(OTHERS))
        assert Recipe.parse(recipe.model_dump_json()).fingerprint == recipe.fingerprint

    def test_a_whole_number_is_the_same_however_it_is_written(self) -> None:
        assert Recipe.parse('{"epochs": 5}').fingerprint == Recipe.parse('{"epochs": 5.0}').fingerprint


class TestForASmallParent:
    def test_is_a_recipe(self) -> None:
        assert Recipe.parse(json.dumps(FOR_A_SMALL_PARENT)).freeze_image_layers > 0


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"epoch": 5}', "recipe: epoch: Extra inputs.*its fields are epochs, batch_size"),
            ('{"epochs": 0}', "recipe: epochs: Input should be greater than 0"),
            ('{"batch_size": 1}', "recipe: batch_size"),
            ('{"precision": "fp16"}', "recipe: precision"),
            ('{"freeze": ["sound"]}', "recipe: freeze.0"),
            ('{"betas": [0.9]}', "recipe: betas.1"),
            ('{"freeze": ["image", "text"]}', "both towers are frozen"),
            ("{", "recipe: JSON: Invalid JSON"),
        ],
    )
    def test_the_field_is_named(self, text: str, message: str) -> None:
        with pytest.raises(LensError, match=message):
            Recipe.parse(text)


def test_defaults_that_are_spelt_out_are_the_same_recipe() -> None:
    spelt_out = Recipe().model_dump_json()
    assert Recipe.parse(spelt_out).fingerprint == Recipe().fingerprint == Recipe.parse('{"epochs": 5}').fingerprint
