"""What rebuilds and rollbacks share: the order in which an index earns the alias."""

from __future__ import annotations

from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import DagBag

DAGS = Path(__file__).parents[2] / "dags"


@pytest.mark.parametrize("dag_id", ["rebuild_index", "rollback_index"])
def test_the_log_is_replayed_after_the_last_load_and_before_the_swap(dag_id: str) -> None:
    bag = DagBag(dag_folder=str(DAGS / f"{dag_id}.py"), bundle_path=DAGS, bundle_name="dags-folder")
    dag = bag.dags[dag_id]
    replay = dag.get_task("replay")
    assert replay.upstream_task_ids == {
        "catch_up_again",
        "begin_rollback" if dag_id == "rollback_index" else "begin_build",
    }
    assert "swap" in {task.task_id for task in replay.get_flat_relatives(upstream=False)}
