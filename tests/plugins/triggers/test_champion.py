"""The watch over the champion, on a real MLflow and a real node: it fires for what is, once, and no outage ends it."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from airflow.triggers.base import TriggerEvent
from registered import register_embedder

from listing_lens.search.index import SearchIndex
from listing_lens.settings import load_settings
from models.embedder import CHAMPION, MODEL
from models.registry import Registry
from plugins.triggers.champion import ChampionTrigger


def look(trigger: ChampionTrigger) -> Any:
    """What a look fires; None if it does not."""
    event = asyncio.run(trigger._look())
    return event.payload if event else None


def move(registry: Registry, version: int) -> None:
    """As MLflow's page does it."""
    registry.client.set_registered_model_alias(MODEL, CHAMPION, str(version))


def make_live(seed_card: Any, build: str) -> str:
    search_index = SearchIndex.connect(load_settings())
    name = search_index.create(seed_card, build).name
    search_index.swap(name)
    return name


def test_it_comes_back_as_it_was() -> None:
    path, arguments = ChampionTrigger(poll_s=5).serialize()
    module, _, name = path.rpartition(".")
    assert (module, name) == (ChampionTrigger.__module__, ChampionTrigger.__name__)
    assert ChampionTrigger(**arguments).poll_s == 5


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, plugins.triggers.champion; print({'mlflow', 'elasticsearch', 'torch'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_without_a_champion_it_is_silent(without_champion: Registry) -> None:
    assert look(ChampionTrigger()) is None


def test_it_fires_once_for_a_champion_and_a_live_index(without_champion: Registry) -> None:
    registry = without_champion
    (first, card), (second, _) = register_embedder(registry, 1), register_embedder(registry, 2)
    registry.promote(first, by="a test", reason="a test", now=datetime.now(UTC))
    trigger = ChampionTrigger()
    assert look(trigger) == {"version": first, "live": None}
    assert look(trigger) is None
    name = make_live(card, "b1")
    assert look(trigger) is None
    # Two moves between two looks: the last one counts.
    move(registry, first)
    move(registry, second)
    assert look(trigger) == {"version": second, "live": name}
    assert look(trigger) is None
    # Another index went live, of a space that is not the champion's either.
    name = make_live(card, "b2")
    assert look(trigger) == {"version": second, "live": name}
    # A triggerer that was started anew finds what is left to do.
    assert look(ChampionTrigger()) == {"version": second, "live": name}


def test_the_same_disagreement_after_an_agreement_fires_again(without_champion: Registry) -> None:
    registry = without_champion
    (first, card), (second, _) = register_embedder(registry, 3), register_embedder(registry, 4)
    name = make_live(card, "b1")
    trigger = ChampionTrigger()
    for _ in range(2):
        registry.promote(first, by="a test", reason="a test", now=datetime.now(UTC))
        assert look(trigger) is None
        registry.promote(second, by="a test", reason="a test", now=datetime.now(UTC))
        assert look(trigger) == {"version": second, "live": name}


def test_a_move_that_nobody_told_fires_although_nothing_has_to_be_built(without_champion: Registry) -> None:
    registry = without_champion
    version, card = register_embedder(registry, 5)
    name = make_live(card, "b1")
    move(registry, version)
    assert look(ChampionTrigger()) == {"version": version, "live": name}


@pytest.mark.parametrize("server", ["MLFLOW", "ELASTICSEARCH"])
def test_an_outage_is_said_once_and_survived(
    server: str, without_champion: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registry = without_champion
    version, _ = register_embedder(registry, 6)
    move(registry, version)
    trigger = ChampionTrigger()
    caplog.set_level(logging.INFO)
    with pytest.MonkeyPatch.context() as away:
        away.setenv(f"LENS_{server}_URL", "http://127.0.0.1:9")
        assert [look(trigger) for _ in range(3)] == [None] * 3
    assert caplog.text.count("at http://127.0.0.1:9 cannot be reached: start it with `lens up`") == 1
    assert look(trigger) == {"version": version, "live": None}
    assert caplog.text.count("the champion is watched again") == 1


def test_it_goes_on_for_ever(without_champion: Registry) -> None:
    registry = without_champion
    versions = [register_embedder(registry, seed)[0] for seed in (7, 8, 9)]

    async def watch() -> list[Any]:
        seen: list[Any] = []
        stream = ChampionTrigger(poll_s=0).run()
        for version in versions:
            await asyncio.to_thread(move, registry, version)
            event = await anext(stream)
            assert isinstance(event, TriggerEvent)
            seen.append(event.payload["version"])
        with suppress(StopAsyncIteration):
            await stream.aclose()  # type: ignore[attr-defined]
        return seen

    assert asyncio.run(watch()) == versions
