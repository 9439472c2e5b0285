"""The DAG that follows the champion: what its watch is, and that what was decided reaches the runs that it starts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG

from plugins.triggers.champion import ChampionTrigger

FOLDER = Path(__file__).parents[2] / "dags"


@pytest.fixture(scope="module")
def dag() -> DAG:
    file = FOLDER / "follow_champion.py"
    return DagBag(dag_folder=str(file), bundle_path=FOLDER, bundle_name="dags-folder").dags["follow_champion"]


def test_its_asset_is_watched(dag: DAG) -> None:
    [asset] = dag.schedule  # type: ignore[misc]
    [watcher] = asset.watchers
    assert isinstance(watcher.trigger, ChampionTrigger)
    assert watcher.trigger.serialize() == ("plugins.triggers.champion.ChampionTrigger", {"poll_s": 30})


def test_a_task_is_named_like_the_dag_that_it_starts(dag: DAG) -> None:
    starts = {task.task_id: getattr(task, "trigger_dag_id", None) for task in dag.tasks}
    assert starts == {"decide": None, "rebuild_index": "rebuild_index", "rollback_index": "rollback_index"}
    assert dag.get_task("decide").downstream_task_ids == {"rebuild_index", "rollback_index"}


@pytest.mark.parametrize(
    ("task_id", "conf"),
    [("rebuild_index", {"model": "champion", "unless_live": True}), ("rollback_index", {"index": "listings-x-b1"})],
)
def test_what_was_decided_reaches_the_run(dag: DAG, task_id: str, conf: dict[str, Any]) -> None:
    pushed = {"run_id": "champion__v3__move_1", "index": "listings-x-b1"}
    context: Any = {
        "ti": SimpleNamespace(xcom_pull=lambda task_ids, key: pushed[key] if task_ids == "decide" else None)
    }
    task: Any = dag.get_task(task_id)
    task.render_template_fields(context)
    assert (task.trigger_run_id, task.conf) == ("champion__v3__move_1", conf)
    assert task.skip_when_already_exists


def test_nothing_else_starts_a_rebuild() -> None:
    for file in FOLDER.glob("*.py"):
        assert ("TriggerDagRunOperator(" in file.read_text()) == (file.stem == "follow_champion")
