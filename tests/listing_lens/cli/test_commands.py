"""`lens` as a person uses it: what a command says is true, what it wrote is there, and what it printed can be copied.

The commands are what most people will ever see of the project, and the only place where all of it meets: real jobs, a
real Elasticsearch, a real MLflow. The registered model has one name for the whole server, so the tests name versions, or
move the champion before they rely on it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import typer
from click import Command, Group
from tiny import (
    FIRST,
    SECOND,
    counts_of,
    items_of,
    land,
    land_sessions,
    listing,
    log_search,
    photo,
    put_items,
)

from listing_lens.cli import app
from listing_lens.lake.dead_letters import DeadLetters, Letter
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.fits import load_projection
from listing_lens.lake.ledger import Ledger
from listing_lens.lake.window import Window
from listing_lens.lake.windows import SESSIONS, Lake
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
    ran = subprocess.run([LENS, "settings"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert str(tmp_path / "relative") in ran.stdout
    assert "a-secret" not in ran.stdout + ran.stderr


def test_a_key_is_shown_once_with_the_setting_that_makes_it_known(lens: Lens) -> None:
    first, second = lens("key", "shop"), lens("key", "shop")
    key = re.findall(r"^key: +(\S+)$", first.stdout, re.MULTILINE)[0]
    [setting] = re.findall(r"^setting: LENS_SEARCH_KEYS=(.*)$", first.stdout, re.MULTILINE)
    assert json.loads(setting) == {"shop": sha256(key.encode()).hexdigest()}
    assert len(key) >= 40
    assert key not in second.stdout


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

    def test_by_words_alone_and_beside_photos(self, lens: Lens, marketplace: Marketplace) -> None:
        def found(*query: object) -> list[str]:
            return [hit["item_id"] for hit in json.loads(lens("search", *query, "-k", "40", "--json").stdout)["hits"]]

        front, back = marketplace.photo("m007"), marketplace.photo("m012")
        queries = ([front], ["--text", "red shoes"], [front, "--text", "red shoes"], [front, back])
        results = [found(*query) for query in queries]
        assert {len(result) for result in results} == {37}
        assert len({tuple(result) for result in results}) == len(queries)

    def test_names_its_page_by_photo_and_words(self, lens: Lens, marketplace: Marketplace) -> None:
        photo_path = marketplace.photo("m007")
        for query, name in (
            (["--text", "赤い靴 / 24.5cm"], "search-赤い靴-24-5cm.html"),
            ([photo_path, "--text", "in green"], "search-m007-in-green.html"),
            (["--text", "…"], "search.html"),
        ):
            result = lens("search", *query, "-k", "1")
            page = marketplace.settings.home / "pages" / name
            assert result.stdout.splitlines()[-1] == f"page: {page}"
            assert page.is_file()

    def test_for_more_than_there_is_finds_all(self, lens: Lens, marketplace: Marketplace) -> None:
        found = json.loads(lens("search", marketplace.photo("m007"), "-k", "100", "--json").stdout)
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


def test_embedding_again_does_only_what_is_missing(
    lens: Lens, marketplace: Marketplace, untrained_siglip: Path
) -> None:
    lake, encoder_id = marketplace.lake, marketplace.card.encoder_id
    ledger = Ledger(Embeddings(lake, encoder_id))
    before, items = ledger.lines(), items_of(lake, encoder_id)
    ledger.table.delete([SECOND.name])
    result = lens("embed", "--encoder", untrained_siglip)
    assert result.exit_code == 0, result.output
    after = ledger.lines()
    assert after[FIRST] == before[FIRST]
    assert after[SECOND].attempt != before[SECOND].attempt
    # Its items were there, and are the same.
    assert counts_of(lake, encoder_id, SECOND) == {"read": 21, "newest": 21, "unchanged": 21}
    assert items_of(lake, encoder_id).keys() == items.keys()


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


def cells(stdout: str) -> list[list[str]]:
    """The rows of the tables that were printed; a long cell goes on in rows whose others are empty."""
    lines = [line.strip("│┃").split("│") for line in stdout.splitlines() if line.startswith("│")]
    rows: list[list[str]] = []
    for line in ([cell.strip() for cell in cells] for cells in lines):
        if rows and not any(line[1:]) and len(line) == len(rows[-1]):
            rows[-1][0] += line[0]
        else:
            rows.append(line)
    return rows


class TestLake:
    ENCODER = "small-12345678"

    @pytest.fixture
    def lake(self, tmp_path: Path) -> Lake:
        return Lake(str(tmp_path / "lens-lake"))

    def fill(self, lake: Lake, merges: int) -> Embeddings:
        for number in range(merges):
            put_items(lake, self.ENCODER, [listing(f"m{number}")], [np.eye(1, 8, dtype=np.float32)[0]])
        return Embeddings(lake, self.ENCODER)

    def test_compacted_has_fewer_files_and_the_same_rows(self, lens: Lens, lake: Lake) -> None:
        embeddings = self.fill(lake, 24)
        before = items_of(lake, self.ENCODER)
        result = lens("lake", "compact")
        assert result.exit_code == 0, result.output
        [row] = cells(result.stdout)
        assert row[:3] == [self.ENCODER, "1", "24"]
        assert items_of(lake, self.ENCODER).keys() == before.keys()
        assert len(embeddings.items.open().get_fragments()) == 1

    def test_compacted_by_encoder_leaves_others(self, lens: Lens, lake: Lake) -> None:
        self.fill(lake, 3)
        for number in range(3):
            put_items(lake, "pixels-4", [listing(f"m{number}")], [np.eye(1, 48, dtype=np.float32)[0]])
        result = lens("lake", "compact", "--encoder", "pixels:4")
        assert result.exit_code == 0, result.output
        assert {row[0]: row[1:3] for row in cells(result.stdout)} == {"pixels-4": ["1", "3"], self.ENCODER: ["3", "3"]}

    def test_sessions_are_landed_of_every_day_that_is_over(self, lens: Lens, lake: Lake) -> None:
        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        # The last of them is not over.
        days = [today - timedelta(days=n) for n in (3, 2, 0)]
        for day in days:
            log_search(lake, day, photo(1), ["a", "b"], ["a"])
        windows = [Window(day, day + timedelta(days=1)) for day in days]
        land_sessions(lake, windows[0], [])
        result = lens("lake", "land-sessions")
        assert result.exit_code == 0, result.output
        assert " ".join(result.stdout.split()) == f"1 sessions of {windows[1]} have landed"
        assert lake.windows(SESSIONS) == windows[:2]
        assert "no day of the log of searches is left to land" in lens("lake", "land-sessions").stdout

    def test_sessions_that_came_from_elsewhere_are_not_landed_anew(self, lens: Lens, lake: Lake) -> None:
        log_search(lake, FIRST.start, photo(1), ["a", "b"], ["a"])
        land_sessions(lake, FIRST, [])
        result = lens("lake", "land-sessions", "--day", f"{FIRST.start:%Y-%m-%d}")
        assert result.exit_code == 0, result.output
        assert "did not come from the log of searches" in " ".join(result.stdout.split())

    def test_compacted_says_which_searches_are_forgotten(
        self, lens: Lens, lake: Lake, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log_search(lake, FIRST.start, photo(1), ["a", "b"], ["a"])
        monkeypatch.setenv("LENS_SEARCH_LOG_DAYS", "0")
        result = lens("lake", "compact")
        assert result.exit_code == 0, result.output
        assert "searches of 1 days are forgotten" in result.stdout

    @pytest.mark.parametrize("command", [["compact"], ["show"], ["dead-letters"]], ids=" ".join)
    def test_without_embeddings_is_no_error(self, lens: Lens, command: list[str]) -> None:
        assert lens("lake", *command).exit_code == 0

    def test_is_shown_with_what_is_embedded_of_it(self, lens: Lens, marketplace: Marketplace) -> None:
        result = lens("lake", "show")
        assert result.exit_code == 0, result.output
        landed = result.stdout.splitlines()[:2]
        assert landed[0] == "listings: 2 windows, from 2026-11-01 00:00 to 2026-11-03 00:00"
        assert landed[1] == "sessions: 1 windows, from 2026-11-01 00:00 to 2026-11-02 00:00"
        encoder_id = marketplace.card.encoder_id
        items, windows = (row[1:] for row in cells(result.stdout) if row[0] == encoder_id)
        version = Embeddings(marketplace.lake, encoder_id).require()
        # 39 items, 37 of them on sale; two windows that are embedded, and one photo that is none.
        assert items[:3] == ["39", "37", str(version)]
        assert windows == ["2", "0", "0", "1", "0"]

    def test_shows_what_runs_left_undone(self, lens: Lens, lake: Lake) -> None:
        embeddings = self.fill(lake, 1)
        land(lake, FIRST, [listing("a")])
        Ledger(embeddings).begin([FIRST], "an attempt", datetime.now(UTC))
        DeadLetters(embeddings).add([self.letter("a", transient=True), self.letter("b", transient=False)])
        windows = cells(lens("lake", "show").stdout)[-1]
        assert windows == [self.ENCODER, "1", "1", "1", "2", "1"]

    def letter(self, item_id: str, *, transient: bool, reason: str = "the server answered 503, 3 times") -> Letter:
        failed = datetime.now(UTC) - timedelta(days=1)
        return Letter.of_listing(listing(item_id), FIRST, "fetch", reason, transient=transient, attempts=2, now=failed)

    def test_s_dead_letters_are_listed_with_their_reasons(self, lens: Lens, lake: Lake) -> None:
        """What strangers wrote is text, whatever it looks like."""
        DeadLetters(Embeddings(lake, self.ENCODER)).add(
            [self.letter("b[/]", transient=False, reason="[bold]no[/bold] :smile:"), self.letter("a", transient=True)]
        )
        DeadLetters(Embeddings(lake, "other-12345678")).add([self.letter("c", transient=True, reason="gone")])
        every = lens("lake", "dead-letters")
        assert every.exit_code == 0, every.output
        mine = cells(lens("lake", "dead-letters", self.ENCODER).stdout)
        assert [row[0] for row in cells(every.stdout) if row[0]] == ["c", "a", "b[/]"]
        assert [row[0] for row in mine if row[0]] == ["a", "b[/]"]
        assert "[bold]no[/bold] :smile:" in every.stdout
        [transient] = [row for row in mine if row[0] == "a"]
        assert (transient[1], transient[3], transient[4]) == ("fetch", "2", "yes")

    def test_s_dead_letters_are_tried_again(self, lens: Lens, marketplace: Marketplace, untrained_siglip: Path) -> None:
        embeddings = Embeddings(marketplace.lake, marketplace.card.encoder_id)
        letters = DeadLetters(embeddings)
        [broken] = letters.letters()
        assert (broken.item_id, broken.attempts) == ("m002", 1)
        # It will not pass by itself, and is not tried unless all are.
        assert lens("lake", "redrive", "--encoder", untrained_siglip).exit_code == 0
        assert list(letters.letters()) == [broken]
        result = lens("lake", "redrive", "--encoder", untrained_siglip, "--all")
        assert result.exit_code == 0, result.output
        [again] = letters.letters()
        assert (again.item_id, again.attempts) == ("m002", 2)
