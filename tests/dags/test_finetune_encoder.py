"""The DAG that fine-tunes: what a run's params become, what its first task refuses, and what a repeated run keeps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from listing_lens.lake.pairs import pairs
from listing_lens.lake.records import LISTING_SCHEMA
from listing_lens.lake.window import Window
from listing_lens.lake.windows import LISTINGS, Lake
from listing_lens.settings import load_settings
from plugins import finetune_tasks

FILE = Path(__file__).parents[2] / "dags" / "finetune_encoder.py"
DAYS = tuple(Window(datetime(2026, 6, day, tzinfo=UTC), datetime(2026, 6, day + 1, tzinfo=UTC)) for day in (1, 2))

# What the templates of a run's tasks see, besides its params.
RUN: Any = {
    "dag_run": SimpleNamespace(run_after=datetime(2026, 7, 1, tzinfo=UTC)),
    "ti": SimpleNamespace(xcom_pull=lambda task_ids: {"parent": "gs://lake/encoders/a"}),
}


def bag() -> DagBag:
    return DagBag(dag_folder=str(FILE), bundle_path=FILE.parent, bundle_name="dags-folder")


@pytest.fixture
def dag() -> DAG:
    return bag().dags["finetune_encoder"]


@pytest.fixture
def lake() -> Lake:
    """Two days of listings have landed."""
    lake = Lake(load_settings().lake)
    for day in DAYS:
        lake.write_table(LISTINGS, day, LISTING_SCHEMA.empty_table(), day.end)
    return lake


@pytest.fixture
def resolve(dag: DAG, monkeypatch: pytest.MonkeyPatch, untrained_siglip: Path) -> Callable[..., dict[str, Any]]:
    """The first task of a run with these params, besides the DAG's own."""
    monkeypatch.setenv("LENS_ENCODER", str(untrained_siglip))

    def run(**params: object) -> dict[str, Any]:
        context = {"params": dag.params.dump() | params}
        monkeypatch.setattr(finetune_tasks, "get_current_context", lambda: context)
        resolved: dict[str, Any] = finetune_tasks.resolve.function("june")
        return resolved

    return run


class TestWiring:
    def test_tasks_follow_one_another(self, dag: DAG) -> None:
        order = ["resolve", "sample_pairs", "train", "compare", "register_encoder", "promote_encoder"]
        edges = {(task.task_id, following) for task in dag.tasks for following in task.downstream_task_ids}
        assert edges == set(pairwise(order))

    def test_a_run_s_params_reach_the_training(self, dag: DAG) -> None:
        recipe = {"learning_rate": 5e-5, "note": 'a "quoted" <title> ü', "lora": None}
        train: Any = dag.get_task("train")
        train.render_template_fields(RUN | {"params": {"recipe": recipe}})
        options = dict(word.removeprefix("--").split("=", 1) for word in train.command if word.startswith("--"))
        assert json.loads(options.pop("recipe")) == recipe
        assert options == {"name": "20260701t000000", "pairs": "20260701t000000", "parent": "gs://lake/encoders/a"}

    @pytest.mark.parametrize(
        ("task_id", "refusal"),
        [
            ("train", "has 0 windows of pairs/20260701t000000"),
            ("compare", "no fine-tuning '20260701t000000' in the lake"),
        ],
    )
    def test_the_program_takes_what_the_task_gives_it(self, dag: DAG, task_id: str, refusal: str) -> None:
        """It goes on to look for what is not in this lake."""
        task: Any = dag.get_task(task_id)
        task.render_template_fields(RUN | {"params": {"recipe": {"epochs": 1}}})
        with pytest.raises(AirflowException, match=f"ended with code 1: error: .*{refusal}"):
            task.execute({})

    def test_the_encoders_to_compare_with_are_a_setting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LENS_COMPARISON_ENCODERS", '["pixels:16", "a/b@1"]')
        assert bag().dags["finetune_encoder"].get_task("compare").command[-3:] == ["--with", "pixels:16", "a/b@1"]

    def test_a_place_that_lacks_something_is_said_where_dags_are_imported(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LENS_TRAINING_PLACE", "kubernetes")
        [error] = bag().import_errors.values()
        assert "LensError: LENS_TRAINING_IMAGE is not set: kubernetes needs the image" in error


class TestResolve:
    def test_the_sample_is_what_the_params_say(self, lake: Lake, resolve: Callable[..., dict[str, Any]]) -> None:
        assert resolve(pairs=10, balance=True, start="2026-06-01", end="2026-06-02")["sample"] == {
            "name": "june",
            "window_start": "2026-06-01T00:00:00+00:00",
            "window_end": "2026-06-02T00:00:00+00:00",
            "pairs": 10,
            "sessions": 2000,
            "validation_share": 0.1,
            "test_share": 0.2,
            "test_time": 0.1,
            "image_side": 288,
            "split_by": "product",
            "balance": True,
        }

    def test_the_parent_is_the_encoder_in_force_or_the_one_asked_for(
        self, lake: Lake, resolve: Callable[..., dict[str, Any]], untrained_siglip: Path, tmp_path: Path
    ) -> None:
        assert resolve()["parent"] == str(untrained_siglip)
        another = shutil.copytree(untrained_siglip, tmp_path / "another")
        assert resolve(parent=str(another))["parent"] == str(another)

    def test_a_parent_without_a_text_tower_is_refused_before_anything_is_drawn(
        self, lake: Lake, resolve: Callable[..., dict[str, Any]]
    ) -> None:
        with pytest.raises(AirflowFailException, match="^encoder 'pixels:16' has no text tower: choose one of images"):
            resolve(parent="pixels:16")

    def test_a_repeated_run_keeps_its_window_whatever_landed_since(
        self, lake: Lake, resolve: Callable[..., dict[str, Any]]
    ) -> None:
        first = resolve()
        assert first["sample"]["window_end"] == DAYS[1].end.isoformat()
        sampled = Window(DAYS[0].start, DAYS[1].end)
        lake.write_table(pairs("june"), sampled, pa.table({"item_id": ["a"]}), sampled.end)
        later = Window(DAYS[1].end, DAYS[1].end + timedelta(days=1))
        lake.write_table(LISTINGS, later, LISTING_SCHEMA.empty_table(), later.end)
        assert resolve() == first

    def test_a_recipe_that_does_not_exist_is_refused_before_anything_is_drawn(
        self, lake: Lake, resolve: Callable[..., dict[str, Any]]
    ) -> None:
        with pytest.raises(AirflowFailException, match="^recipe: speed: Extra inputs are not permitted"):
            resolve(recipe={"speed": 11})

    def test_an_empty_interval_is_refused(self, lake: Lake, resolve: Callable[..., dict[str, Any]]) -> None:
        with pytest.raises(AirflowFailException, match="is empty: the end must be later than the start"):
            resolve(start="2026-06-02", end="2026-06-01")

    def test_a_lake_without_listings_is_refused(self, resolve: Callable[..., dict[str, Any]]) -> None:
        with pytest.raises(AirflowFailException, match="no listings have landed"):
            resolve()


class TestAfterwards:
    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
        """What is asked of the workflow."""
        from listing_lens import registration

        seen: list[tuple[str, object]] = []
        monkeypatch.setattr(
            registration, "register_finetune", lambda name, settings: seen.append(("register", name)) or 3
        )
        monkeypatch.setattr(registration, "promote_encoder", lambda version, settings, by: seen.append((by, version)))
        return seen

    def test_the_encoder_is_registered_by_the_run_s_name(self, calls: list[tuple[str, object]]) -> None:
        assert finetune_tasks.register_encoder.function("june") == 3
        assert calls == [("register", "june")]

    @pytest.mark.parametrize("asked", [True, False])
    def test_it_is_promoted_only_when_asked(
        self, calls: list[tuple[str, object]], monkeypatch: pytest.MonkeyPatch, asked: bool
    ) -> None:
        monkeypatch.setattr(finetune_tasks, "get_current_context", lambda: {"params": {"promote": asked}})
        monkeypatch.setattr(finetune_tasks, "this_run", lambda: "airflow a-dag a-run")
        if asked:
            finetune_tasks.promote_encoder.function(3)
        else:
            with pytest.raises(AirflowSkipException):
                finetune_tasks.promote_encoder.function(3)
        assert calls == ([("airflow a-dag a-run", 3)] if asked else [])
