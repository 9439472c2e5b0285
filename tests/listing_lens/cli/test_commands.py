"""`lens` as a person uses it: what a command says is true, what it wrote is there, and what it printed can be copied.

The commands are what most people will ever see of the project, and the only place where all of it meets: real jobs, a
real Elasticsearch, a real MLflow. The registered model has one name for the whole server, so the tests name versions, or
move the champion before they rely on it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
import typer
from click import Command, Group
from tiny import FIRST, SECOND, listing

from listing_lens.cli import app
from listing_lens.lake.fits import load_projection
from listing_lens.lake.windows import Lake, embeddings
from listing_lens.registration import promote
from listing_lens.registry import connect_registry
from listing_lens.search.index import SearchIndex
from models.embedder import CANDIDATE, CHAMPION

if TYPE_CHECKING:
    from tests.listing_lens.cli.conftest import Lens, Marketplace, Refusal

LENS = Path(sys.executable).with_name("lens")


def commands(command: Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, Group):
        for name, sub in command.commands.items():
            yield from commands(sub, (*path, name))


@pytest.mark.parametrize("path", commands(typer.main.get_command(app)), ids=" ".join)
def test_every_command_helps(lens: Lens, path: tuple[str, ...]) -> None:
    result = lens(*path, "--help")
    assert result.exit_code == 0
    assert f"Usage: lens {' '.join(path)}".rstrip() in result.stdout


def test_the_installed_program_runs_from_any_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "LENS_ELASTICSEARCH_API_KEY": "a-secret", "LENS_LAKE": "relative", "COLUMNS": "200"}
    ran = subprocess.run(
        [LENS, "settings"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert str(tmp_path / "relative") in ran.stdout
    assert "a-secret" not in ran.stdout + ran.stderr


class TestSettings:
    def test_hide_the_key_unless_asked(self, lens: Lens, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LENS_ELASTICSEARCH_API_KEY", "a-secret")
        hidden, shown = lens("settings"), lens("settings", "--secrets")
        assert "a-secret" not in hidden.output
        assert "****" in hidden.stdout
        assert "a-secret" in shown.stdout

    def test_are_whole_in_a_narrow_terminal(self, lens: Lens, monkeypatch: pytest.MonkeyPatch) -> None:
        lake = f"gs://{'a-long-bucket-name' * 3}/[draft]"
        monkeypatch.setenv("LENS_LAKE", lake)
        result = lens("settings")
        cells = [line.split("│") for line in result.stdout.splitlines() if line.startswith("│")]
        assert lake in "".join(cell[3].strip() for cell in cells)
        assert "LENS_MAX_DEAD_LETTER_RATIO" in {cell[2].strip() for cell in cells}


class TestRun:
    def test_takes_listings_to_a_searchable_index(self, marketplace: Marketplace) -> None:
        assert marketplace.ran.exit_code == 0, marketplace.ran.output
        first = marketplace.search_index.all()[0]
        assert f"alias {marketplace.settings.alias} points to {first.name}\n" in marketplace.ran.stdout
        # Of forty items two are sold, and one has no photo that can be used.
        assert marketplace.search_index.counts(first.name) == {"searchable": 37, "removed": 2}
        assert first.card.dims == 8

    def test_registers_what_it_indexed(self, marketplace: Marketplace) -> None:
        registered = connect_registry(marketplace.settings).get(str(marketplace.version))
        assert registered.card == marketplace.card


class TestSearch:
    def test_as_json_finds_the_photo_itself_first(self, lens: Lens, marketplace: Marketplace) -> None:
        result = lens("search", marketplace.photo("m007"), "-k", "5", "--json")
        found = json.loads(result.stdout)
        live = marketplace.search_index.require_live()
        assert (found["index"], found["space"]) == (live.name, live.card.space)
        assert len(found["hits"]) == 5
        assert found["hits"][0]["item_id"] == "m007"
        assert found["hits"][0]["score"] == pytest.approx(1, abs=1e-4)
        assert not list(marketplace.settings.home.glob("pages/search-m007.html"))

    def test_prints_a_table_and_writes_a_page_with_photos(
        self, lens: Lens, marketplace: Marketplace, tmp_path: Path
    ) -> None:
        page = tmp_path / "a folder [that] is new" / f"{'long' * 20}.html"
        result = lens("search", marketplace.photo("m012"), "-k", "5", "--page", page)
        *table, last = result.stdout.splitlines()
        first = next(line for line in table if line.startswith("│ 1 "))
        assert "m012" in first
        assert "¥1,200" in first
        assert last == f"page: {page}"
        html = page.read_text(encoding="utf-8")
        # The query and five listings.
        assert html.count("data:image/jpeg;base64,") == 6

    def test_writes_its_page_below_the_home(self, lens: Lens, marketplace: Marketplace) -> None:
        assert lens("search", marketplace.photo("m014"), "-k", "1").exit_code == 0
        assert (marketplace.settings.home / "pages" / "search-m014.html").is_file()

    def test_for_more_than_there_is_finds_all(self, lens: Lens, marketplace: Marketplace) -> None:
        found = json.loads(lens("search", marketplace.photo("m007"), "-k", "1000", "--json").stdout)
        ids = {hit["item_id"] for hit in found["hits"]}
        assert ids == {f"m{n:03d}" for n in range(40)} - {"m001", "m002", "m003"}

    def test_takes_what_sellers_write_for_text(
        self, lens: Lens, marketplace: Marketplace, own_index: SearchIndex
    ) -> None:
        index = own_index.create(marketplace.card, "odd")
        made = replace(listing("m[/]1", title="[/] [bold]sofa :smile: " + "長" * 40), category=("[A]", "B"))
        own_index.write(index.name, [made], [np.eye(8, dtype=np.float32)[0]])
        own_index.finish_load(index.name)
        own_index.swap(index.name)
        result = lens("search", marketplace.photo("m007"))
        cells = [line.split("│") for line in result.stdout.splitlines() if line.startswith("│")]
        title = "".join(cell[4].strip() for cell in cells)
        assert "[/]" in title
        assert ":smile:" in title
        assert title.count("長") == 40
        assert "[A]" in result.stdout
        assert "m[/]1" in result.stdout


class TestIndex:
    def test_is_listed_by_its_whole_name(self, lens: Lens, marketplace: Marketplace) -> None:
        result = lens("index", "list")
        cells = [line.split("│") for line in result.stdout.splitlines() if line.startswith("│")]
        names = "".join(cell[1].strip() for cell in cells)
        assert all(index.name in names for index in marketplace.search_index.all())
        assert [cell[4].strip() for cell in cells].count("live") == 1

    def test_rebuilt_is_a_new_one_and_the_old_one_is_kept(self, lens: Lens, marketplace: Marketplace) -> None:
        before = marketplace.search_index.require_live()
        promote(marketplace.version, asked=True, settings=marketplace.settings)
        result = lens("index", "rebuild")
        assert result.exit_code == 0, result.output
        live = marketplace.search_index.require_live()
        assert live.name != before.name
        assert live.card == before.card
        assert f"points to {live.name}, no longer to {before.name}\n" in result.stdout
        assert {before.name, live.name} <= {index.name for index in marketplace.search_index.all()}
        counts = marketplace.search_index.counts
        assert counts(live.name) == counts(before.name) == {"searchable": 37, "removed": 2}

    def test_rebuilt_embeds_what_its_encoder_lacks(self, lens: Lens, marketplace: Marketplace) -> None:
        lake, dataset = marketplace.lake, embeddings(marketplace.card.encoder_id)
        before = lake.manifest(dataset, SECOND)
        Path(lake.folder(dataset, SECOND), "manifest.json").unlink()
        result = lens("index", "rebuild", "--model", marketplace.version)
        assert result.exit_code == 0, result.output
        live = marketplace.search_index.require_live()
        assert marketplace.search_index.counts(live.name) == {"searchable": 37, "removed": 2}
        assert lake.manifest(dataset, SECOND).counts == before.counts

    def test_is_deleted_unless_it_is_live(self, lens: Lens, marketplace: Marketplace) -> None:
        search_index = marketplace.search_index
        live, other = search_index.require_live(), search_index.create(marketplace.card, "to-be-deleted")
        refused = lens("index", "delete", live.name)
        assert refused.exit_code == 1
        assert "is live: swap the alias" in refused.stderr
        deleted = lens("index", "delete", other.name)
        assert deleted.exit_code == 0, deleted.output
        names = {index.name for index in search_index.all()}
        assert live.name in names
        assert other.name not in names
        unknown = lens("index", "delete", other.name)
        assert unknown.exit_code == 1
        assert f"there is no index '{other.name}'" in unknown.stderr


def test_embedding_again_does_only_what_is_missing(
    lens: Lens, marketplace: Marketplace, untrained_siglip: Path
) -> None:
    lake, dataset = marketplace.lake, embeddings(marketplace.card.encoder_id)
    before = {window: lake.manifest(dataset, window) for window in (FIRST, SECOND)}
    Path(lake.folder(dataset, SECOND), "manifest.json").unlink()
    result = lens("embed", "--encoder", untrained_siglip)
    assert result.exit_code == 0, result.output
    assert lake.manifest(dataset, FIRST) == before[FIRST]
    again = lake.manifest(dataset, SECOND)
    assert again.files != before[SECOND].files
    assert again.counts == before[SECOND].counts


def test_a_later_fit_is_a_candidate_and_leaves_the_champion(
    lens: Lens, marketplace: Marketplace, untrained_siglip: Path
) -> None:
    registry = connect_registry(marketplace.settings)
    promote(marketplace.version, asked=True, settings=marketplace.settings)
    result = lens("projection", "fit", "--encoder", untrained_siglip, "--dims", "4")
    assert result.exit_code == 0, result.output
    candidate = registry.get(CANDIDATE)
    assert f"listing-embedder version {candidate.version} is the candidate\n" in result.stdout
    # It is judged beside the champion's projection, which has 8 dimensions.
    rows = [[cell.strip() for cell in line.split("│")] for line in result.stdout.splitlines() if line.startswith("│")]
    recall = {row[1]: row[2:-1] for row in rows}
    assert recall.keys() == {"4", "8"}
    assert recall["8"][:2] == ["–", "–"]
    assert "beside the projection before it" in result.stdout
    assert (candidate.card.encoder_id, candidate.card.dims) == (marketplace.card.encoder_id, 4)
    assert registry.get(CHAMPION).version == marketplace.version


def test_a_fit_takes_a_share_of_the_variance_and_a_sample(
    lens: Lens, marketplace: Marketplace, untrained_siglip: Path
) -> None:
    options = ["--explained-variance", "0.6", "--whiten", "--fraction", "0.9", "--start", FIRST.start.isoformat()]
    result = lens("projection", "fit", "--encoder", untrained_siglip, *options)
    assert result.exit_code == 0, result.output
    candidate = connect_registry(marketplace.settings).get(CANDIDATE)
    projection = load_projection(marketplace.lake, candidate.card.projection_id, candidate.card.encoder_id)
    assert projection.whitened
    assert projection.explained_variance_ratio.sum() >= 0.6
    assert projection.rows < 38


@pytest.mark.parametrize(
    "options",
    [["--dims", "4", "--explained-variance", "0.5"], ["--fraction", "0.5", "--rows", "9"]],
    ids=["what is kept", "what is drawn"],
)
def test_options_of_a_fit_that_exclude_each_other_are_refused(refusal: Refusal, options: list[str]) -> None:
    assert refusal("projection", "fit", *options).endswith("exclude each other: give one of them")


def test_an_evaluation_is_printed_written_and_logged(lens: Lens, marketplace: Marketplace) -> None:
    result = lens("evaluate", "--model", marketplace.version)
    assert result.exit_code == 0, result.output
    rows = [[cell.strip() for cell in line.split("│")] for line in result.stdout.splitlines() if line.startswith("│")]
    printed = {row[1]: row[2:4] for row in rows}
    # Each session taps the one item that its query shows.
    assert printed["precision@1"] == ["1.000", "1.000"]
    assert printed["recall@5"] == ["1.000", "1.000"]
    page = marketplace.settings.home / "pages" / f"evaluation-{FIRST.name}-v{marketplace.version}.html"
    assert f"page: {page}\n" in result.stdout
    assert "data:image/png;base64," in page.read_text(encoding="utf-8")
    client = connect_registry(marketplace.settings).client
    experiment = client.get_experiment_by_name("offline evaluation")
    runs = client.search_runs([experiment.experiment_id], f"params.space = '{marketplace.card.space}'")
    assert [run.data.params["evaluated"] for run in runs] == ["4"]
    assert runs[0].data.metrics["projected/precision_at_1"] == 1


class TestLake:
    def test_compacted_has_fewer_files_and_the_same_windows(self, lens: Lens, tmp_path: Path) -> None:
        lake, dataset = Lake(str(tmp_path / "lens-lake")), embeddings("small-12345678")
        windows = list(FIRST.split(timedelta(hours=1)))
        for number, window in enumerate(windows):
            lake.write_table(dataset, window, pa.table({"number": [number]}), window.end)
        result = lens("lake", "compact")
        assert result.exit_code == 0, result.output
        cells = [cell.strip() for cell in result.stdout.splitlines()[-2].split("│")]
        assert cells[1:5] == ["small-12345678", "24", "1", "24"]
        assert [batch["number"].to_pylist() for batch in lake.read(dataset, windows)] == [[*range(24)]]

    def test_without_embeddings_is_no_error(self, lens: Lens) -> None:
        assert lens("lake", "compact").exit_code == 0
