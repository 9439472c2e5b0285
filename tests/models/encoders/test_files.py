"""An encoder's files, wherever they lie: a folder, Cloud Storage (an emulated one), the model hub (a folder of its own)."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.cloud.storage import Bucket

from models.cloud_storage import cloud_storage
from models.encoders import files
from models.encoders.encoder import Encoder
from models.encoders.files import encoder_folder, encoder_id, identify, lasting_source, model_files
from models.errors import LensError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where models that were fetched are kept."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "models"))
    return tmp_path / "models" / "listing-lens"


def upload(bucket: Bucket, folder: Path, name: str) -> str:
    for path in folder.iterdir():
        bucket.blob(f"lake/encoders/{name}/{path.name}").upload_from_filename(path)
    return f"gs://{bucket.name}/lake/encoders/{name}"


class TestOnCloudStorage:
    def test_is_fetched_once_and_is_the_same_encoder(
        self, bucket: Bucket, cache: Path, untrained_siglip: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = encoder_id("trained", untrained_siglip)
        source = upload(bucket, untrained_siglip, name)
        assert identify(source) == name
        folder = encoder_folder(source)
        assert folder.is_relative_to(cache)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            path.name: path.read_bytes() for path in untrained_siglip.iterdir()
        }

        def fetched_again(*_: object) -> None:
            raise AssertionError

        monkeypatch.setattr(cloud_storage(), "get_file", fetched_again)
        encoder = Encoder.load(source)
        assert (encoder.source, encoder.encoder_id) == (source, name)

    def test_that_changed_is_fetched_anew(self, bucket: Bucket, cache: Path, untrained_siglip: Path) -> None:
        source = upload(bucket, untrained_siglip, "mine")
        before = identify(source)
        bucket.blob("lake/encoders/mine/config.json").upload_from_string("{}")
        assert identify(source) != before

    def test_brings_no_file_that_could_be_code(self, bucket: Bucket, cache: Path, untrained_siglip: Path) -> None:
        source = upload(bucket, untrained_siglip, "mine")
        for name in ("pytorch_model.bin", "modeling.py", "sub/model.safetensors", "spiece.model"):
            bucket.blob(f"lake/encoders/mine/{name}").upload_from_string("x")
        names = {path.name for path in untrained_siglip.iterdir()}
        assert {path.name for path in encoder_folder(source).iterdir()} == names | {"spiece.model"}

    def test_a_fetch_that_failed_leaves_nothing_behind(
        self, bucket: Bucket, cache: Path, untrained_siglip: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = upload(bucket, untrained_siglip, "mine")

        def cut(*_: object) -> None:
            raise OSError("connection reset")

        with monkeypatch.context() as broken:
            broken.setattr(cloud_storage(), "get_file", cut)
            with pytest.raises(LensError, match=r"cannot be fetched \(connection reset\)"):
                encoder_folder(source)
        assert list(cache.iterdir()) == []
        assert encoder_folder(source).is_dir()

    def test_that_is_not_there_is_named(self, bucket: Bucket, cache: Path) -> None:
        with pytest.raises(LensError, match=f"gs://{bucket.name}/nothing.*check the address"):
            encoder_folder(f"gs://{bucket.name}/nothing")


class TestFromTheHub:
    def test_tokenizers_come_along_and_pickles_do_not(
        self, untrained_siglip: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []

        def snapshot(repo: str, **options: object) -> str:
            asked.append((repo, options))
            return str(untrained_siglip)

        monkeypatch.setattr(files, "snapshot_download", snapshot)
        assert encoder_folder("google/siglip@a1b2") == untrained_siglip
        [(repo, options)] = asked
        assert (repo, options["revision"]) == ("google/siglip", "a1b2")
        wanted = ["config.json", "model.safetensors", "tokenizer.json", "spiece.model", "merges.txt", "vocab.json"]
        unwanted = ["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "modeling.py", "README.md"]
        from huggingface_hub.utils import filter_repo_objects

        assert list(filter_repo_objects(wanted + unwanted, allow_patterns=options["allow_patterns"])) == wanted
        # Of one commit its code comes too: it cannot be another when it is run.
        encoder_folder(f"google/siglip@{'a1b2' * 10}")
        patterns = asked[-1][1]["allow_patterns"]
        assert list(filter_repo_objects(wanted + unwanted, allow_patterns=patterns)) == [*wanted, "modeling.py"]


def test_a_folder_below_the_home_folder(untrained_siglip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(untrained_siglip.parent))
    assert encoder_folder(f"~/{untrained_siglip.name}") == untrained_siglip
    assert lasting_source(f"~/{untrained_siglip.name}") == str(untrained_siglip)


@pytest.mark.parametrize("source", ["google/siglip@a1b2", "gs://bucket/lake/encoders/small-12345678", "pixels:16"])
def test_other_sources_last_as_they_are(source: str) -> None:
    assert lasting_source(source) == source


def test_a_baseline_is_identified_without_files() -> None:
    assert identify("pixels:16") == "pixels-16"


def test_the_files_of_an_encoder_end_with_its_config(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "config.json", "model.safetensors", "spiece.model", "optimizer.pt", "zebra.json"):
        (tmp_path / name).touch()
    (tmp_path / "checkpoint.json").mkdir()
    names = [path.name for path in model_files(tmp_path)]
    assert names[-1] == "config.json"
    assert sorted(names) == ["config.json", "model.safetensors", "spiece.model", "tokenizer.json", "zebra.json"]
