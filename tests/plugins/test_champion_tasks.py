"""What a run of `follow_champion` decides, on a real MLflow and a real node: by what is, and once for every move."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from registered import register_embedder

from listing_lens.search.index import Index, SearchIndex
from listing_lens.settings import load_settings
from models.embedder import CHAMPION, MODEL
from models.registry import Registry
from plugins import champion_tasks


@dataclass
class Run:
    """What a run of `follow_champion` sees of Airflow: its own type, and the runs of the DAGs that it starts."""

    run_type: str = "asset_triggered"
    runs: dict[str, str] = field(default_factory=dict)
    pushed: dict[str, Any] = field(default_factory=dict)

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value

    def get_dr_count(self, dag_id: str, run_ids: Sequence[str], states: Sequence[str] | None) -> int:
        found = [self.runs[f"{dag_id}/{run_id}"] for run_id in run_ids if f"{dag_id}/{run_id}" in self.runs]
        return len([state for state in found if states is None or state in states])

    def decide(self) -> str | None:
        self.pushed.clear()
        return champion_tasks.decide.function()  # type: ignore[no-any-return]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    run = Run()
    context = {"ti": run, "dag_run": run}
    monkeypatch.setattr(champion_tasks, "get_current_context", lambda: context)
    return run


@pytest.fixture
def registry(without_champion: Registry) -> Iterator[Registry]:
    return without_champion  # type: ignore[return-value]


def make_live(card: Any, build: str) -> Index:
    search_index = SearchIndex.connect(load_settings())
    index = search_index.create(card, build)
    search_index.swap(index.name)
    return index


def test_nothing_follows_without_a_champion(run: Run, registry: Registry) -> None:
    assert run.decide() is None
    assert run.pushed == {}


def test_a_champion_that_is_live_is_told_and_nothing_follows(run: Run, registry: Registry) -> None:
    version, card = register_embedder(registry, 11)
    make_live(card, "b1")
    registry.client.set_registered_model_alias(MODEL, CHAMPION, str(version))
    assert run.decide() is None
    assert [move.by for move in registry.moves(version)[:1]] == ["MLflow"]
    assert run.pushed == {}


def test_a_move_in_mlflow_is_told_and_followed_by_a_rebuild(run: Run, registry: Registry) -> None:
    (first, card), (second, _) = register_embedder(registry, 12), register_embedder(registry, 13)
    make_live(card, "b1")
    registry.client.set_registered_model_alias(MODEL, CHAMPION, str(second))
    assert run.decide() == "rebuild_index"
    move = registry.moves(second)[0]
    assert (move.by, move.over) == ("MLflow", first)
    assert run.pushed == {"run_id": f"champion__v{second}__{move.key}", "index": None}


def test_an_index_that_was_kept_is_rolled_back_to(run: Run, registry: Registry) -> None:
    (first, old), (second, card) = register_embedder(registry, 14), register_embedder(registry, 15)
    kept, _ = make_live(old, "b1"), make_live(card, "b2")
    registry.promote(second, by="a test", reason="a test", now=datetime.now(UTC))
    registry.promote(first, by="a test", reason="a test", now=datetime.now(UTC))
    assert run.decide() == "rollback_index"
    assert run.pushed["index"] == kept.name


@pytest.mark.parametrize("follower", ["rebuild_index", "rollback_index"])
def test_a_move_is_followed_once_and_again_only_by_hand(run: Run, registry: Registry, follower: str) -> None:
    version, _ = register_embedder(registry, 16)
    registry.promote(version, by="a test", reason="a test", now=datetime.now(UTC))
    assert run.decide() == "rebuild_index"
    name = run.pushed["run_id"]
    for state in ("queued", "running", "success", "failed"):
        run.runs = {f"{follower}/{name}": state}
        assert run.decide() is None
    run.run_type = "manual"
    assert run.decide() == "rebuild_index"
    assert run.pushed["run_id"] == f"{name}__2"
    run.runs[f"rebuild_index/{name}__2"] = "running"
    assert run.decide() is None
    run.runs[f"rebuild_index/{name}__2"] = "failed"
    assert run.decide() == "rebuild_index"
    assert run.pushed["run_id"] == f"{name}__3"


def test_moves_of_one_version_are_followed_each(run: Run, registry: Registry) -> None:
    (first, card), (second, _) = register_embedder(registry, 17), register_embedder(registry, 18)
    make_live(card, "b1")
    names = []
    for _ in range(2):
        registry.promote(first, by="a test", reason="a test", now=datetime.now(UTC))
        assert run.decide() is None
        registry.promote(second, by="a test", reason="a test", now=datetime.now(UTC))
        assert run.decide() == "rebuild_index"
        names.append(run.pushed["run_id"])
        run.runs[f"rebuild_index/{names[-1]}"] = "success"
    assert len(set(names)) == 2
