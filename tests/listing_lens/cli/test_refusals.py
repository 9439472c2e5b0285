"""What a person gets wrong, and what is down: one sentence that names the thing and the remedy, and nothing half written.

A traceback at a terminal is read by nobody, and a command that stops in the middle must not leave what the next one, or
a search, would take for whole.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file, save_file
from tiny import photo

from listing_lens.lake.windows import Lake
from listing_lens.search.index import SearchIndex

if TYPE_CHECKING:
    from tests.listing_lens.cli.conftest import Lens, Marketplace, Refusal

LENS = Path(sys.executable).with_name("lens")
NOWHERE = "http://127.0.0.1:1"


class TestSettings:
    def test_a_value_that_does_not_fit_is_named(self, refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LENS_PROJECTION_DIMS", "many")
        assert re.match(r"setting LENS_PROJECTION_DIMS: .*integer.*'many'", refusal("settings"))

    def test_a_name_that_is_none_is_named(self, refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LENS_PROJCTION_DIMS", "8")
        assert re.match("LENS_PROJCTION_DIMS is not a setting: see .*defaults.toml", refusal("embed"))


@pytest.mark.parametrize(
    "command",
    [["search", "PHOTO", "-k", "101"], ["search", "PHOTO", "-k", "0"], ["serach"], ["index", "list", "x"]],
    ids=" ".join,
)
def test_a_command_that_is_none_is_a_usage_error(lens: Lens, command: list[str]) -> None:
    result = lens(*command)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Usage: lens" in result.stderr


class TestPhoto:
    """A photo is looked at before any server is."""

    def test_that_is_not_there(self, refusal: Refusal, tmp_path: Path) -> None:
        path = tmp_path / "no.jpg"
        assert refusal("search", path) == f"photo {path} cannot be read: No such file or directory"

    def test_that_is_a_folder(self, refusal: Refusal, tmp_path: Path) -> None:
        assert refusal("search", tmp_path) == f"photo {tmp_path} cannot be read: Is a directory"

    @pytest.mark.parametrize(
        "data", [b"", b"<html>", photo(1)[:400]], ids=["empty", "something else", "the beginning of one"]
    )
    def test_that_is_none(self, refusal: Refusal, tmp_path: Path, data: bytes) -> None:
        path = tmp_path / "[photo].jpg"
        path.write_bytes(data)
        assert refusal("search", path, "--json").startswith(f"photo {path} cannot be searched with: ")


class TestQuery:
    @pytest.mark.parametrize("query", [[], ["--text", " "]], ids=["nothing", "no words"])
    def test_of_nothing(self, refusal: Refusal, query: list[str]) -> None:
        assert refusal("search", *query) == "there is nothing to search with: give a photo, --text, or both"

    def test_of_words_where_they_are_switched_off(
        self, refusal: Refusal, monkeypatch: pytest.MonkeyPatch, marketplace: Marketplace
    ) -> None:
        monkeypatch.setenv("LENS_SEARCH_TEXT", "false")
        said = refusal("search", marketplace.photo("m007"), "--text", "red shoes")
        assert said == "searches by words are switched off: set LENS_SEARCH_TEXT=true"


class TestServers:
    @pytest.mark.parametrize(
        "command", [["run"], ["index", "list"], ["index", "rebuild"], ["search", "PHOTO"]], ids=" ".join
    )
    def test_elasticsearch_that_does_not_answer(
        self, refusal: Refusal, monkeypatch: pytest.MonkeyPatch, marketplace: Marketplace, command: list[str]
    ) -> None:
        monkeypatch.setenv("LENS_ELASTICSEARCH_URL", NOWHERE)
        said = refusal(*(marketplace.photo("m007") if word == "PHOTO" else word for word in command))
        assert (
            said
            == f"Elasticsearch at {NOWHERE} cannot be reached: start it with `lens up`, or check LENS_ELASTICSEARCH_URL"
        )

    @pytest.mark.parametrize(
        "command", [["run"], ["index", "rebuild"], ["projection", "fit"], ["evaluate"]], ids=" ".join
    )
    def test_mlflow_that_does_not_answer(
        self, refusal: Refusal, monkeypatch: pytest.MonkeyPatch, own_index: SearchIndex, command: list[str]
    ) -> None:
        monkeypatch.setenv("LENS_MLFLOW_URL", NOWHERE)
        said = refusal(*command)
        assert said == f"MLflow at {NOWHERE} cannot be reached: start it with `lens up`, or check LENS_MLFLOW_URL"
        assert own_index.all() == []

    def test_that_are_not_there(self, refusal: Refusal) -> None:
        assert refusal("run").startswith("LENS_ELASTICSEARCH_URL is not set and no local stack is up: ")
        assert refusal("projection", "fit").startswith("LENS_MLFLOW_URL is not set and no local stack is up: ")


class TestLake:
    @pytest.mark.parametrize("where", ["a file", "below a file", "where nothing can be made"])
    @pytest.mark.parametrize("command", [["embed"], ["evaluate"], ["search", "PHOTO"]], ids=" ".join)
    def test_that_cannot_be_reached(
        self,
        refusal: Refusal,
        monkeypatch: pytest.MonkeyPatch,
        marketplace: Marketplace,
        tmp_path: Path,
        command: list[str],
        where: str,
    ) -> None:
        file = tmp_path / "file"
        file.write_text("")
        lake = {"a file": file, "below a file": file / "lake", "where nothing can be made": Path("/proc/lake")}[where]
        monkeypatch.setenv("LENS_LAKE", str(lake))
        said = refusal(*(marketplace.photo("m007") if word == "PHOTO" else word for word in command))
        assert said.startswith(f"lake {lake} cannot be reached (")
        assert said.endswith("): check LENS_LAKE")

    @pytest.mark.parametrize(
        ("command", "what"),
        [(["run"], "listings"), (["embed"], "listings"), (["evaluate"], "sessions")],
        ids=["run", "embed", "evaluate"],
    )
    def test_that_is_empty(
        self,
        refusal: Refusal,
        monkeypatch: pytest.MonkeyPatch,
        marketplace: Marketplace,
        tmp_path: Path,
        command: list[str],
        what: str,
    ) -> None:
        monkeypatch.setenv("LENS_LAKE", str(tmp_path))
        said = f"the lake {tmp_path} holds no {what}: run `lens catalog make` or `lens catalog import`"
        assert refusal(*command) == said


class TestWindow:
    @pytest.mark.parametrize(
        ("bounds", "missing"),
        [
            (["--start", "2026-11-20T00:00:00Z", "--end", "2026-11-21T00:00:00Z"], "2026-11-20 00:00:00Z"),
            (["--end", "2026-11-21T00:00:00Z"], "2026-11-03 00:00:00Z"),
            (["--start", "2026-10-01T00:00:00Z"], "2026-10-01 00:00:00Z"),
        ],
        ids=["all of it", "its end", "its start"],
    )
    def test_that_has_not_landed(
        self, refusal: Refusal, marketplace: Marketplace, bounds: list[str], missing: str
    ) -> None:
        said = refusal("embed", *bounds)
        assert said.startswith(f"listings of [{missing}, ")
        assert "have not landed" in said
        assert said.endswith("import them with `lens catalog import`")

    def test_of_sessions_that_has_not_landed(self, refusal: Refusal, marketplace: Marketplace) -> None:
        said = refusal("evaluate", "--end", "2026-11-03T00:00:00Z")
        assert said.startswith("sessions of [2026-11-02 00:00:00Z, 2026-11-03 00:00:00Z) have not landed")

    @pytest.mark.parametrize(
        ("start", "reason"),
        [("yesterday", "write times as"), ("2026-11-01", "has no time zone"), ("2027-01-01T00:00:00Z", "is empty")],
    )
    def test_that_is_none(self, refusal: Refusal, marketplace: Marketplace, start: str, reason: str) -> None:
        assert reason in refusal("embed", "--start", start)


class TestIndex:
    def test_that_is_not_there_yet(self, refusal: Refusal, marketplace: Marketplace, own_index: SearchIndex) -> None:
        said = f"alias '{own_index.alias}' points to no index yet: build one with `lens index rebuild`"
        assert refusal("search", marketplace.photo("m007")) == said

    def test_whose_encoder_has_other_weights_now(
        self, refusal: Refusal, marketplace: Marketplace, own_index: SearchIndex, untrained_siglip: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / untrained_siglip.name
        shutil.copytree(untrained_siglip, folder)
        weights = folder / "model.safetensors"
        save_file({name: tensor + 1e-3 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
        card = marketplace.card.model_copy(update={"encoder_source": str(folder)})
        own_index.swap(own_index.create(card, "one").name)
        said = refusal("search", marketplace.photo("m007"))
        assert said.startswith(f"encoder '{folder}' is now untrained-siglip-")
        assert (
            f"but {card.encoder_id} is needed: restore its weights, or embed the catalog and rebuild the index" in said
        )

    def test_whose_projection_the_lake_lacks(
        self, refusal: Refusal, marketplace: Marketplace, own_index: SearchIndex
    ) -> None:
        card = marketplace.card.model_copy(update={"projection_id": "00000000"})
        own_index.swap(own_index.create(card, "one").name)
        lake = marketplace.settings.lake
        said = f"projection 00000000 is not in the lake {lake}: fit one, or check LENS_LAKE"
        assert refusal("search", marketplace.photo("m007")) == said

    def test_of_a_model_that_is_not_there(
        self, refusal: Refusal, marketplace: Marketplace, own_index: SearchIndex
    ) -> None:
        said = refusal("index", "rebuild", "--model", "999999")
        assert said.startswith("MLflow's listing-embedder has no version or alias '999999': fit a projection with")
        assert own_index.all() == []

    def test_whose_projection_is_gone_is_not_begun(
        self,
        refusal: Refusal,
        monkeypatch: pytest.MonkeyPatch,
        marketplace: Marketplace,
        own_index: SearchIndex,
        tmp_path: Path,
    ) -> None:
        monkeypatch.setenv("LENS_LAKE", str(tmp_path / "another"))
        said = refusal("index", "rebuild", "--model", marketplace.version)
        assert said.startswith(f"projection {marketplace.card.projection_id} is not in the lake {tmp_path}")
        assert own_index.all() == []


def test_an_encoder_that_is_unknown(marketplace: Marketplace, tmp_path: Path) -> None:
    """From another folder, by the installed program: the sentence of a job's process, of its own, comes up."""
    before = sorted(Path(marketplace.lake.root).rglob("*"))
    ran = subprocess.run(
        [LENS, "embed", "--encoder", "/no/such/encoder"],
        cwd=tmp_path,
        env={**os.environ, **marketplace.settings.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    assert re.search(
        "^error: encoder '/no/such/encoder' is neither a folder nor a model .*: give a folder", ran.stderr, re.M
    )
    assert "Traceback" not in ran.stderr
    assert sorted(Path(marketplace.lake.root).rglob("*")) == before


def test_a_page_that_cannot_be_written(refusal: Refusal, lens: Lens, marketplace: Marketplace, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    page = tmp_path / "file" / "page.html"
    result = lens("search", marketplace.photo("m007"), "--page", page)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: the page cannot be written to {page}: ")
    assert result.stderr.endswith("; choose another with --page\n")


def test_a_lake_that_was_refused_is_left_as_it_was(
    refusal: Refusal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LENS_LAKE", str(tmp_path / "lake"))
    refusal("embed")
    assert Lake(str(tmp_path / "lake")).windows("listings") == []
