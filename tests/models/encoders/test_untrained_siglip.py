"""The demo's untrained encoder: small, the same for the same seed, and one whose tokenizer reads any title."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from models.encoders.encoder import Encoder
from models.encoders.files import encoder_id
from models.encoders.untrained_siglip import SIDE, save_untrained_siglip
from models.finetune.towers import Towers

TITLES = ["red leather bag", "blue leather shoes", "赤い革のバッグ", "Nike エア マックス 27cm"] * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained_siglip(tmp_path_factory.mktemp("encoders") / "demo", TITLES)


@pytest.fixture(scope="module")
def towers(folder: Path) -> Towers:
    return Towers.load(folder).eval()


def test_has_about_three_million_parameters(folder: Path) -> None:
    count = sum(parameter.numel() for parameter in AutoModel.from_pretrained(folder).parameters())
    assert 2.5e6 < count < 3.5e6


def test_is_the_same_for_the_same_seed_and_titles(folder: Path, tmp_path: Path) -> None:
    again = save_untrained_siglip(tmp_path / "again" / "demo", TITLES)
    other = save_untrained_siglip(tmp_path / "other" / "demo", TITLES, seed=1)
    names = [encoder_id(str(path), path) for path in (folder, again, other)]
    assert names[0] == names[1] != names[2]
    assert (folder / "tokenizer.json").read_text() == (again / "tokenizer.json").read_text()


def test_making_it_leaves_other_random_numbers_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    save_untrained_siglip(tmp_path / "demo")
    assert torch.equal(torch.rand(3), expected)


def test_embeds_images_of_its_side(folder: Path) -> None:
    encoder = Encoder.load(str(folder))
    assert (encoder.dims, encoder.image_side) == (192, SIDE)


class TestTokenizer:
    @pytest.mark.parametrize("title", ["red leather bag", "革 バッグ ★", "𝔉raktur 😀 ﷽", ""])
    def test_reads_any_title_and_pads_it(self, folder: Path, title: str) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = tokenizer([title], padding="max_length", truncation=True, max_length=32)["input_ids"][0]
        assert len(ids) == 32
        assert max(ids) < 2048
        assert tokenizer.eos_token_id in ids
        assert (ids[-1] == tokenizer.pad_token_id) == (ids.index(tokenizer.eos_token_id) < 31)

    def test_knows_the_titles_words(self, folder: Path) -> None:
        plain = AutoTokenizer.from_pretrained(folder)
        assert len(plain("red leather bag")["input_ids"]) < 8

    def test_case_and_width_do_not_matter(self, folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer("ＲＥＤ Bag")["input_ids"] == tokenizer("red bag")["input_ids"]


class TestItsStart:
    def test_the_bias_is_that_of_its_batch(self, towers: Towers) -> None:
        assert towers.bias.item() == pytest.approx(-math.log(128))

    def test_titles_are_told_apart(self, towers: Towers) -> None:
        embeddings = towers.embed_titles(TITLES[:4])
        assert np.abs(np.corrcoef(embeddings) - np.eye(4)).max() < 0.99
