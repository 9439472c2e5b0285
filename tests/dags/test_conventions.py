"""What holds for every DAG file: it parses without the heavy libraries, and it is its own manual in the Airflow UI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG, Param

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "dags").glob("*.py"))
EXPECTED = {
    "compact_lake",
    "embed_new_listings",
    "evaluate_offline",
    "finetune_encoder",
    "follow_champion",
    "forget_searches",
    "rebuild_index",
    "redrive_dead_letters",
    "rollback_index",
    "verify_live_index",
    "refit_projection",
}


def _parsed(file: Path) -> DAG:
    bag = DagBag(dag_folder=str(file), bundle_path=ROOT / "dags", bundle_name="dags-folder")
    assert not bag.import_errors, bag.import_errors
    [dag] = bag.dags.values()
    return dag


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def dag(request: pytest.FixtureRequest) -> DAG:
    return _parsed(request.param)


def test_all_are_there() -> None:
    assert {file.stem for file in FILES} == EXPECTED


def test_it_is_named_like_its_file(dag: DAG) -> None:
    assert Path(dag.fileloc).stem == dag.dag_id


def test_it_is_its_own_manual(dag: DAG) -> None:
    manual = dag.doc_md or ""
    for heading in ("**When.**", "**What.**", "**When it fails.**"):
        assert heading in manual, f"{dag.dag_id} lacks {heading}"
    beside = ("**Must not race with**", "**May run beside**")
    assert any(heading in manual for heading in beside), f"{dag.dag_id} lacks {' or '.join(beside)}"
    for task in dag.tasks:
        assert f"`{task.task_id}`" in manual, f"the manual of {dag.dag_id} does not mention {task.task_id}"


def test_it_can_be_found_and_has_an_owner(dag: DAG) -> None:
    assert dag.tags
    assert dag.default_args["owner"]


def test_it_decides_on_catching_up_and_on_runs_side_by_side(dag: DAG) -> None:
    assert "catchup" in (ROOT / "dags" / f"{dag.dag_id}.py").read_text()
    assert dag.max_active_runs <= 2


def test_every_param_has_a_type_and_a_description(dag: DAG) -> None:
    for name, param in dag.params.items():
        param = dag.params.get_param(name) if not isinstance(param, Param) else param
        assert param.schema.get("type"), f"{dag.dag_id}: {name} has no type"
        assert param.description, f"{dag.dag_id}: {name} has no description"


def test_every_task_may_be_tried_again_and_ends(dag: DAG) -> None:
    for task in dag.tasks:
        assert task.execution_timeout is not None, f"{task.task_id} may run for ever"
        assert task.retries > 0 or task.task_id == "require_window"


def test_every_rule_other_than_the_default_says_why(dag: DAG) -> None:
    source = (ROOT / "dags" / f"{dag.dag_id}.py").read_text().splitlines()
    for number, line in enumerate(source):
        if "trigger_rule" in line:
            assert source[number - 1].strip().startswith("#")


def test_nothing_heavy_is_imported_while_it_is_parsed(dag: DAG) -> None:
    code = (
        "import sys, runpy; import airflow.sdk; "
        f"runpy.run_path({dag.fileloc!r}); "
        "print([name for name in ('torch', 'apache_beam', 'transformers', 'mlflow', 'elasticsearch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize("dag_id", ["embed_new_listings", "evaluate_offline"])
def test_a_window_is_checked_before_anything_else(dag_id: str) -> None:
    dag = _parsed(ROOT / "dags" / f"{dag_id}.py")
    assert [task.task_id for task in dag.roots] == ["require_window"]
