"""The DAGs' pages: they are what the DAG files say, on every machine, and a page that is not says what mends it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import pytest
from airflow.sdk import DAG, Asset, Param
from airflow.sdk.bases.operator import BaseOperator

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "docs" / "dag_pages.py"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dag_pages", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the program writes: the pages of a project without DAGs, of which there is the index alone."""
    monkeypatch.setattr(program, "ROOT", tmp_path)
    monkeypatch.setattr(program, "PAGES", tmp_path / "dags")
    monkeypatch.setattr(program, "_dags", lambda: [])
    return tmp_path / "dags"


@pytest.fixture
def dag() -> DAG:
    """Of three tasks; the last gets something from the first as well."""
    with DAG(
        "tidy",
        schedule="@weekly",
        start_date=datetime(2026, 11, 1, tzinfo=UTC),
        catchup=True,
        doc_md="\n### Tidy up\n\nTidies up, e.g. a room.\nThen another.\n\n**When.** Weekly.\n",
        params={"room": Param("a|b", type="string", description="Which\nroom.")},
    ) as dag:
        first, second, third = (BaseOperator(task_id=name) for name in ("look", "move", "count"))
        first >> second >> third
        first >> third
    dag.fileloc = "/anywhere/tidy.py"
    return dag


def test_the_pages_are_what_the_dags_say_whatever_the_settings_of_who_asks() -> None:
    environment = os.environ | {"LENS_EMBED_SCHEDULE": "@daily", "LENS_TRAINING_PLACE": "kubernetes"}
    command = [sys.executable, PROGRAM, "--check"]
    checked = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert checked.returncode == 0, checked.stderr


def test_every_dag_has_a_page_and_the_index_leads_to_it() -> None:
    index = (ROOT / "docs" / "dags" / "README.md").read_text()
    for file in (ROOT / "dags").glob("*.py"):
        assert (ROOT / "docs" / "dags" / f"{file.stem}.md").is_file()
        assert f"({file.stem}.md)" in index


def test_what_is_wrong_is_named(program: ModuleType, tmp_path: Path) -> None:
    program.write(tmp_path, {"a.md": "a", "b.md": "b"})
    assert program.drift(tmp_path, {"a.md": "a", "b.md": "b"}) == []
    found = program.drift(tmp_path, {"a.md": "other", "c.md": "c"})
    assert found == ["a.md drifted", "b.md is of no DAG", "c.md is missing"]


def test_writing_mends_it_and_keeps_what_is_no_page(program: ModuleType, folder: Path) -> None:
    folder.mkdir()
    (folder / "gone.md").write_text("the page of a DAG that is gone")
    (folder / "figure.png").write_bytes(b"")
    with pytest.raises(
        SystemExit, match=r"^error: dags: README.md is missing, gone.md is of no DAG: .*`make dag-pages`"
    ):
        program.main(["--check"])
    program.main([])
    program.main(["--check"])
    assert {path.name for path in folder.iterdir()} == {"README.md", "figure.png"}


def test_the_remedy_is_a_target(program: ModuleType) -> None:
    target = program.REMEDY.split("`make ")[1].rstrip("`")
    assert f"\n{target}: " in (ROOT / "Makefile").read_text()


def test_a_page_holds_the_manual_the_parameters_and_the_tasks_in_order(program: ModuleType, dag: DAG) -> None:
    assert (
        program.pages_of([dag])["tidy.md"]
        == r"""<!-- Written by `make dag-pages` from dags/tidy.py: edit that file. -->

# Tidy up

`tidy`, weekly, catching up. Its file is [dags/tidy.py](../../dags/tidy.py).

Tidies up, e.g. a room.
Then another.

**When.** Weekly.

## Parameters

| name | type | default | description |
| --- | --- | --- | --- |
| `room` | string | `"a\|b"` | Which room. |

## Tasks

| task | after |
| --- | --- |
| `look` |  |
| `move` | `look` |
| `count` | `move` |
"""
    )


def test_the_index_has_a_dag_s_first_sentence(program: ModuleType, dag: DAG) -> None:
    index = program.pages_of([dag])["README.md"]
    assert index.splitlines()[-1] == "| [`tidy`](tidy.md) | weekly, catching up | Tidies up, e.g. a room. |"


@pytest.mark.parametrize(
    ("param", "type_and_default"),
    [
        (Param("b", type="string", enum=["a", "b"], description="-"), ("`a` or `b`", '`"b"`')),
        (Param(None, type=["null", "string"], format="date", description="-"), ("date", "empty")),
        (Param(None, type=["null", "integer"], minimum=1, description="-"), ("integer, at least 1", "empty")),
        (
            Param(0.1, type="number", exclusiveMinimum=0, maximum=0.5, description="-"),
            ("number, more than 0, at most 0.5", "`0.1`"),
        ),
        (Param({}, type="object", description="-"), ("object", "`{}`")),
        (Param(False, type="boolean", description="-"), ("boolean", "`false`")),
    ],
    ids=["enum", "format", "optional", "bounds", "object", "boolean"],
)
def test_a_parameter_in_words(program: ModuleType, param: Param, type_and_default: tuple[str, str]) -> None:
    with DAG("a", schedule=None, params={"it": param}, doc_md="### A\n\nA.") as dag:
        pass
    row = program.pages_of([dag])["a.md"].split("| `it` | ")[1].split(" | ")
    assert (row[0], row[1]) == type_and_default


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ("@hourly", "hourly"),
        ("0 0 * * 0", "weekly"),
        ("5 4 * * *", "at `5 4 * * *`"),
        (None, "by hand"),
        ([Asset("a-thing")], "by hand, or on the asset `a-thing`"),
    ],
    ids=str,
)
def test_when_in_words(program: ModuleType, schedule: str | list[Asset] | None, words: str) -> None:
    page = program.pages_of([DAG("a", schedule=schedule, doc_md="### A\n\nA.")])["a.md"]
    assert f"`a`, {words}." in page
    assert "## Parameters\n\nNone." in page
