"""Writes docs/dags: a page a DAG, and their index, from what the DAG files say. The page of a DAG that is gone, goes.

    python docs/dag_pages.py            # as `make dag-pages` does
    python docs/dag_pages.py --check    # write nothing; end with 1 and a sentence when a page is not what its DAG says

The pages are of the defaults: the caller's settings do not reach them. No Airflow has to run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "dags"
REMEDY = "write them anew with `make dag-pages`"

_INDEX = "README.md"
# JSON Schema's bounds in words.
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Write the pages, or check them."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--check", action="store_true", help="write nothing; end with 1 when a page drifted")
    known = arguments.parse_args(argv)
    pages = pages_of(_dags())
    found = drift(PAGES, pages)
    if not known.check:
        write(PAGES, pages)
        print(f"{len(pages)} pages in {PAGES.relative_to(ROOT)}, of which {len(found)} changed")
    elif found:
        sys.exit(f"error: {PAGES.relative_to(ROOT)}: {', '.join(found)}: {REMEDY}")


def drift(folder: Path, pages: Mapping[str, str]) -> list[str]:
    """What is wrong with a folder that should hold just these pages, by file name; empty when nothing is."""
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    wrong = {
        "is missing": pages.keys() - there.keys(),
        "is of no DAG": there.keys() - pages.keys(),
        "drifted": {name for name in pages.keys() & there.keys() if pages[name] != there[name]},
    }
    return sorted(f"{name} {what}" for what, names in wrong.items() for name in names)


def write(folder: Path, pages: Mapping[str, str]) -> None:
    """Make a folder hold just these pages."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.md"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")


def pages_of(dags: Sequence[Any]) -> dict[str, str]:
    """The pages of DAGs by file name, and the index."""
    when = {dag.dag_id: _when(dag, dags) for dag in dags}
    return {_INDEX: _index(dags, when)} | {f"{dag.dag_id}.md": _page(dag, when[dag.dag_id]) for dag in dags}


def _dags() -> list[Any]:
    """The project's DAGs by name, as Airflow parses them in an empty home, with the default settings."""
    for name in [name for name in os.environ if name.startswith(("AIRFLOW_", "LENS_"))]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="dag-pages-") as home:
        os.environ |= {"AIRFLOW_HOME": home, "LENS_HOME": home, "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING"}
        # Airflow reads its environment when it is imported.
        from airflow.dag_processing.dagbag import DagBag

        bag = DagBag(dag_folder=str(ROOT / "dags"), bundle_path=ROOT / "dags", bundle_name="dags-folder")
    if bag.import_errors:
        sys.exit(f"error: {'; '.join(bag.import_errors.values())}")
    return [bag.dags[dag_id] for dag_id in sorted(bag.dags)]


# ---- pages -----------------------------------------------------------------------------------------------------------


def _index(dags: Sequence[Any], when: Mapping[str, str]) -> str:
    rows = [(f"[`{dag.dag_id}`]({dag.dag_id}.md)", when[dag.dag_id], _in_one_line(dag)) for dag in dags]
    return _document(
        "<!-- Written by `make dag-pages` from dags/: edit the files there. -->",
        "# The DAGs",
        "Each page is its DAG's manual: what it does and when, its parameters and tasks, and what to do when it fails. It is "
        "written from the DAG file, whose docstring Airflow's interface shows as well.",
        _table(("DAG", "when", "what"), rows),
    )


def _page(dag: Any, when: str) -> str:
    file = f"dags/{Path(dag.fileloc).name}"
    heading, manual = _manual(dag)
    parameters = [(f"`{name}`", *_parameter(dag.params.get_param(name))) for name in dag.params]
    tasks = [
        (f"`{task.task_id}`", ", ".join(f"`{before}`" for before in _before(task))) for task in dag.topological_sort()
    ]
    return _document(
        f"<!-- Written by `make dag-pages` from {file}: edit that file. -->",
        f"# {heading}",
        f"`{dag.dag_id}`, {when}. Its file is [{file}](../../{file}).",
        manual,
        "## Parameters",
        _table(("name", "type", "default", "description"), parameters),
        "## Tasks",
        _table(("task", "after"), tasks),
    )


def _manual(dag: Any) -> tuple[str, str]:
    """A docstring's heading, and what follows it."""
    heading, _, manual = dag.doc_md.strip().partition("\n")
    return heading.lstrip("# "), manual.strip()


def _in_one_line(dag: Any) -> str:
    """The first sentence of a manual."""
    paragraph = " ".join(_manual(dag)[1].partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0]


def _when(dag: Any, dags: Sequence[Any]) -> str:
    """When a DAG runs, in words."""
    from airflow.utils.dates import cron_presets

    if dag.schedule is None:
        triggers = [f"`{by.dag_id}`" for by in dags for task in by.tasks if _triggers(task, dag)]
        return ", ".join(["by hand", *(f"or triggered by {by}" for by in triggers)])
    if isinstance(dag.schedule, list):
        return f"by hand, or on the asset {', '.join(f'`{asset.name}`' for asset in dag.schedule)}"
    cron = dag.schedule if isinstance(dag.schedule, str) else dag.schedule.summary
    presets = {expression: name for name, expression in cron_presets.items()}
    name = presets.get(cron, cron)
    words = name.removeprefix("@") if name in cron_presets else f"at `{name}`"
    return f"{words}, catching up" if dag.catchup else words


def _before(task: Any) -> list[str]:
    """The tasks that one follows directly; those that it follows anyway, because these do, are left out."""
    direct = {before.task_id: before.get_flat_relative_ids(upstream=True) for before in task.upstream_list}
    return sorted(direct.keys() - set().union(*direct.values()))


def _triggers(task: Any, dag: Any) -> bool:
    return bool(getattr(task, "trigger_dag_id", None) == dag.dag_id)


def _parameter(param: Any) -> tuple[str, str, str]:
    """A parameter's type, default and description."""
    of = param.schema["type"]
    names = [of] if isinstance(of, str) else [name for name in of if name != "null"]
    words = [" or ".join(f"`{value}`" for value in param.schema.get("enum", ())) or " or ".join(names)]
    if "format" in param.schema:
        words = [param.schema["format"]]
    words += [f"{bound} {param.schema[key]}" for key, bound in _BOUNDS.items() if key in param.schema]
    default = "empty" if param.value is None else f"`{json.dumps(param.value, ensure_ascii=False)}`"
    return ", ".join(words), default, param.description


# ---- Markdown --------------------------------------------------------------------------------------------------------


def _document(*parts: str) -> str:
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "None."
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


if __name__ == "__main__":
    main()
