"""The DAG that tries dead letters again: what a run's params become, and that its tasks fit together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG
from tiny import FIRST, image_root, land, listing, take_photo

from listing_lens.lake.dead_letters import DeadLetters, Letter
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.windows import Lake
from listing_lens.settings import load_settings
from plugins import tasks
from plugins.operators.beam_job import BeamJobOperator

FILE = Path(__file__).parents[2] / "dags" / "redrive_dead_letters.py"


@pytest.fixture
def dag() -> DAG:
    bag = DagBag(dag_folder=str(FILE), bundle_path=FILE.parent, bundle_name="dags-folder")
    return bag.dags["redrive_dead_letters"]


def test_nothing_follows_when_nothing_is_due(dag: DAG) -> None:
    """One task runs once for each encoder that was found: for none it is skipped, and the load of the live index with it."""
    edges = {(task.task_id, following) for task in dag.tasks for following in task.downstream_task_ids}
    assert edges == {
        ("find_due", "redrive"),
        ("redrive", "load_live"),
        ("load_live", "find_other_indexes"),
        ("find_other_indexes", "load_others"),
        ("load_live", "require_live_is_fed"),
        ("load_others", "require_live_is_fed"),
    }
    assert dag.get_task("redrive").is_mapped
    assert dag.get_task("load_live").trigger_rule == "all_success"


@pytest.mark.parametrize(
    ("params", "asked"),
    [({}, (None, False)), ({"encoder": "models:/listing-encoder/3", "all": True}, ("models:/listing-encoder/3", True))],
    ids=["none", "both"],
)
def test_a_run_s_params_reach_its_tasks(dag: DAG, params: dict[str, Any], asked: tuple[str | None, bool]) -> None:
    context: Any = {"params": dag.params.dump() | params}
    find_due: Any = dag.get_task("find_due")
    find_due.render_template_fields(context)
    assert tuple(find_due.op_args) == asked
    load_live: Any = dag.get_task("load_live")
    load_live.render_template_fields(context)
    assert load_live.pipeline_options == {"live": True, "encoder": asked[0]}


def test_the_job_takes_what_was_found_and_then_nothing_is_due() -> None:
    lake = Lake(load_settings().lake)
    take_photo(lake, "a.jpg", seed=1)
    late = listing("a", image_uri=f"{image_root(lake)}/a.jpg")
    land(lake, FIRST, [late])
    embeddings = Embeddings(lake, "pixels-4")
    letters = DeadLetters(embeddings)
    letters.add([Letter.of_listing(late, FIRST, "fetch", "no answer", transient=True, attempts=1, now=FIRST.end)])
    [found] = tasks.find_due.function("pixels:4", False)
    BeamJobOperator(task_id="redrive", job="redrive_dead_letters", arguments=found).execute({})
    assert [row["item_id"] for row in embeddings.items.rows(["item_id"])] == ["a"]
    assert list(letters.letters()) == []
    assert tasks.find_due.function("pixels:4", False) == []
