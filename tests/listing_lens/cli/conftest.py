"""The commands as a person gives them: in this process, where that is cheap, on real servers and a tiny marketplace."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from click.testing import Result
from tiny import FIRST, land_marketplace, land_sessions, remove_indexes
from typer.testing import CliRunner

from listing_lens.cli import app
from listing_lens.lake.records import Query, Session
from listing_lens.lake.windows import Lake
from listing_lens.search.index import SearchIndex
from listing_lens.settings import Settings, load_settings
from models.embedder import EmbedderCard

Lens = Callable[..., Result]
Refusal = Callable[..., str]


@dataclass(frozen=True)
class Marketplace:
    """Landed listings and sessions, the settings that name them, and what `lens run` said of them."""

    settings: Settings
    lake: Lake
    search_index: SearchIndex
    ran: Result

    @property
    def card(self) -> EmbedderCard:
        return self.search_index.require_live().card

    @property
    def version(self) -> int:
        """The version that `lens run` registered."""
        said = re.search(r"listing-embedder version (\d+) is the champion", self.ran.stdout)
        assert said, self.ran.output
        return int(said.group(1))

    def photo(self, item_id: str) -> Path:
        return Path(self.lake.root, "images", f"{item_id}.jpg")


@pytest.fixture
def lens(monkeypatch: pytest.MonkeyPatch) -> Lens:
    """Give a command in this process. What it raises, other than to exit, fails the test."""
    monkeypatch.setenv("COLUMNS", "80")
    return _lens


@pytest.fixture
def refusal(lens: Lens) -> Refusal:
    """Give a command that must refuse: nothing on standard output, one sentence on standard error, exit 1."""

    def refused(*arguments: object) -> str:
        result = lens(*arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        # Above it may be a job's bars.
        said = result.stderr.splitlines()[-1]
        assert said.startswith("error: ")
        assert "Traceback" not in result.stderr
        return said.removeprefix("error: ")

    return refused


@pytest.fixture
def own_index(marketplace: Marketplace, monkeypatch: pytest.MonkeyPatch) -> Iterator[SearchIndex]:
    """No index yet, behind an alias of this test's own."""
    monkeypatch.setenv("LENS_ALIAS", f"test-{uuid4().hex[:8]}")
    search_index = SearchIndex.connect(load_settings())
    yield search_index
    remove_indexes(search_index)


@pytest.fixture(scope="session")
def was_run(
    tmp_path_factory: pytest.TempPathFactory, elasticsearch_url: str, mlflow_url: str, untrained_siglip: Path
) -> Iterator[Marketplace]:
    """A tiny marketplace that `lens run` was given, behind an alias of its own."""
    folder = tmp_path_factory.mktemp("marketplace")
    settings = load_settings(
        home=folder / "home",
        lake=str(folder / "lake"),
        elasticsearch_url=elasticsearch_url,
        mlflow_url=mlflow_url,
        alias=f"test-{uuid4().hex[:8]}",
        encoder_batch_size=8,
        encoder_backends=("float32",),
        max_dead_letter_ratio=0.1,
    )
    lake = Lake(settings.lake)
    land_marketplace(lake)
    shown = tuple(f"m{n:03d}" for n in range(4, 12))
    land_sessions(
        lake,
        FIRST,
        [
            Session(
                f"s{n}",
                FIRST.start + timedelta(hours=n),
                Query((f"{shown[n]}.jpg",)),
                shown,
                tuple(i == n for i in range(8)),
            )
            for n in range(4)
        ],
    )
    with pytest.MonkeyPatch.context() as environment:
        _use(settings, environment)
        ran = _lens("run", "--encoder", str(untrained_siglip), "--dims", "8")
    search_index = SearchIndex.connect(settings)
    yield Marketplace(settings, lake, search_index, ran)
    remove_indexes(search_index)


@pytest.fixture
def marketplace(was_run: Marketplace, monkeypatch: pytest.MonkeyPatch) -> Marketplace:
    """The marketplace after `lens run`, which commands see until the test ends."""
    _use(was_run.settings, monkeypatch)
    return was_run


def _lens(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def _use(settings: Settings, environment: pytest.MonkeyPatch) -> None:
    for name, value in settings.environment.items():
        environment.setenv(name, value)
