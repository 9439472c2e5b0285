"""The direction of imports: what is computed knows nothing of what schedules it, so each room can be used without the next.

Read from the syntax of every file, imports within functions and for type checkers included; and, for the terminal, from
what a process has really loaded, because a command that drags in torch takes seconds to say what its options are.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each room, and the rooms that it may import.
MAY_IMPORT = {
    "models": {"models"},
    "listing_lens": {"listing_lens", "models"},
    "beam_jobs": {"beam_jobs", "listing_lens", "models"},
    "plugins": {"plugins", "listing_lens", "models"},
    "dags": {"dags", "plugins", "listing_lens", "models"},
}
# The rooms inside listing_lens, from the ground up: each may import those before it. A module that lies beside them is one.
STOREYS = (
    "errors",
    "progress",
    "process_group",
    "settings",
    "jobs",
    "lake",
    "images",
    "registry",
    "search",
    "embedding",
    "indexing",
    "serving",
    "comparison",
    "finetuning",
    "registration",
    "importing",
    "stack",
    "demo",
    "cli",
)
# Others' packages that a room does without.
DOES_WITHOUT = {
    "models": {"airflow", "apache_beam", "elasticsearch", "elastic_transport"},
    "listing_lens": {"airflow", "apache_beam"},
    "beam_jobs": {"airflow"},
    "plugins": {"apache_beam", "torch", "transformers"},
    "dags": {"apache_beam", "torch", "transformers"},
}


def imports(path: Path) -> Iterator[str]:
    """The full names of the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), path.name)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield str(node.module)


def inner_imports(path: Path) -> set[str]:
    """The rooms inside listing_lens that a file imports from, wherever in it: `from listing_lens import jobs` is of jobs."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), path.name)):
        if isinstance(node, ast.ImportFrom) and node.module == "listing_lens":
            found |= {name.name for name in node.names}
    return found | {name.split(".")[1] for name in imports(path) if name.startswith("listing_lens.")}


def files_of(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def tops(path: Path) -> set[str]:
    """The rooms and packages that a file imports from."""
    return {name.partition(".")[0] for name in imports(path)}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    files = files_of(room)
    assert files
    wrong = {str(path.relative_to(ROOT)): tops(path) & MAY_IMPORT.keys() - MAY_IMPORT[room] for path in files}
    assert not {path: rooms for path, rooms in wrong.items() if rooms}


def test_every_room_inside_listing_lens_has_its_storey() -> None:
    house = ROOT / "listing_lens"
    found = {path.stem for path in house.glob("*.py")} | {path.parent.name for path in house.glob("*/__init__.py")}
    assert found - {"__init__"} == set(STOREYS)


@pytest.mark.parametrize("storey", STOREYS)
def test_a_room_inside_listing_lens_imports_only_those_below_it(storey: str) -> None:
    may_import = set(STOREYS[: STOREYS.index(storey) + 1])
    files = files_of(f"listing_lens/{storey}") or [ROOT / "listing_lens" / f"{storey}.py"]
    wrong = {str(path.relative_to(ROOT)): inner_imports(path) - may_import for path in files}
    assert not {path: rooms for path, rooms in wrong.items() if rooms}


def test_nothing_but_the_terminal_imports_the_demo() -> None:
    may_import = {ROOT / "listing_lens" / room for room in ("demo", "cli")}
    files = [path for room in (*MAY_IMPORT, "benchmarks", "docker") for path in files_of(room)]
    wrong = [path for path in files if "demo" in inner_imports(path) and not may_import & set(path.parents)]
    assert not wrong


@pytest.mark.parametrize("room", DOES_WITHOUT)
def test_a_room_does_without_what_is_not_its_business(room: str) -> None:
    wrong = {str(path.relative_to(ROOT)): tops(path) & DOES_WITHOUT[room] for path in files_of(room)}
    assert not {path: packages for path, packages in wrong.items() if packages}


def test_no_room_imports_the_tests() -> None:
    assert not [path for room in MAY_IMPORT for path in files_of(room) if "tests" in tops(path)]


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        (
            "listing_lens.cli.main",
            {"torch", "transformers", "mlflow", "apache_beam", "airflow", "sklearn", "matplotlib"},
        ),
        ("listing_lens.lake.windows", {"torch", "mlflow", "apache_beam", "airflow", "elasticsearch", "gcsfs"}),
        ("listing_lens.search.index", {"torch", "mlflow", "apache_beam", "airflow"}),
        ("models.encoders.files", {"torch", "transformers", "mlflow"}),
        ("models.encoders.encoder", {"models.encoders.conv_siglip", "models.finetune", "mlflow"}),
        ("models.projection", {"torch", "mlflow", "sklearn", "matplotlib"}),
    ],
)
def test_importing_it_loads_nothing_heavy(module: str, heavy: set[str], tmp_path: Path) -> None:
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    loaded = set(json.loads(found.stdout))
    assert not loaded & heavy
