"""The DAG that evaluates: what a run's params and interval become for its jobs, and what follows what."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.providers.apache.beam.hooks.beam import beam_options_to_args
from airflow.sdk import DAG
from tiny import FIRST

from models.embedder import EmbedderCard

FILE = Path(__file__).parents[2] / "dags" / "evaluate_offline.py"
CARD = EmbedderCard(encoder_source="pixels:4", encoder_id="pixels-4", encoder_dims=48, projection_id="00000001", dims=8)


WINDOW = {"--window_start": str(FIRST.start), "--window_end": str(FIRST.end)}


@pytest.fixture
def dag() -> DAG:
    bag = DagBag(dag_folder=str(FILE), bundle_path=FILE.parent, bundle_name="dags-folder")
    return bag.dags["evaluate_offline"]


def given(dag: DAG, task_id: str, **params: object) -> dict[str, str]:
    """The options of a task's job, in a run of the first window."""
    task: Any = dag.get_task(task_id)
    resolved = {"version": 3, "card": CARD.model_dump(), "encoder_source": CARD.encoder_source}
    pulled = SimpleNamespace(xcom_pull=lambda *, key, **_: resolved[key])
    context: Any = {
        "params": dag.params.dump() | params,
        "data_interval_start": FIRST.start,
        "data_interval_end": FIRST.end,
        "ti": pulled,
    }
    task.render_template_fields(context)
    options = beam_options_to_args(task.pipeline_options)
    return {name: value for name, _, value in (option.partition("=") for option in options)}


@pytest.mark.parametrize("afresh", [False, True])
def test_the_job_is_given_the_window_the_card_and_whether_to_begin_afresh(dag: DAG, afresh: bool) -> None:
    options = given(dag, "evaluate", afresh=afresh)
    assert EmbedderCard.model_validate_json(options.pop("--card")) == CARD
    assert options == WINDOW | ({"--afresh": ""} if afresh else {})


def test_the_window_s_sessions_are_landed(dag: DAG) -> None:
    assert given(dag, "land_sessions") == WINDOW


def test_sessions_are_landed_before_they_are_evaluated_or_were_there_already(dag: DAG) -> None:
    edges = {(task.task_id, following) for task in dag.tasks for following in task.downstream_task_ids}
    assert edges == {
        ("require_window", "wait_for_log"),
        ("wait_for_log", "land_sessions"),
        ("land_sessions", "evaluate"),
        ("require_window", "resolve_embedder"),
        ("resolve_embedder", "evaluate"),
        ("resolve_embedder", "log_evaluation"),
        ("evaluate", "log_evaluation"),
    }
    others = {task.task_id: task.trigger_rule for task in dag.tasks if task.trigger_rule != "all_success"}
    assert others == {"evaluate": "none_failed"}
