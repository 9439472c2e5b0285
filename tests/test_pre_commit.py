"""The hooks of a commit: pre-commit takes them, nothing is fetched for them, and they check what `make lint` checks."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / ".pre-commit-config.yaml"
REPOS: list[dict[str, Any]] = yaml.safe_load(CONFIG.read_text())["repos"]


def test_pre_commit_takes_them() -> None:
    command = [Path(sys.executable).with_name("pre-commit"), "validate-config", CONFIG]
    checked = subprocess.run(command, check=False, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_they_run_the_tools_that_the_project_pins() -> None:
    assert [repo["repo"] for repo in REPOS] == ["local"]
    for hook in REPOS[0]["hooks"]:
        assert hook["language"] == "system", hook["id"]
        assert hook["entry"].startswith(".venv/bin/"), hook["id"]


def test_they_check_what_make_lint_checks_and_the_dags_pages() -> None:
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert lint
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in lint[1].splitlines()]
    entries = [hook["entry"] for hook in REPOS[0]["hooks"]]
    assert entries == [*commands, ".venv/bin/python docs/dag_pages.py --check"]
