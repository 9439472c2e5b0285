"""Dataflow's image and templates: the versions are the project's, and a template's parameters are its job's options."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

import apache_beam
import pytest
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parents[2]
DATAFLOW = ROOT / "docker" / "dataflow"
# Programs that start a pipeline; one that only computes on its own host has none to describe.
JOBS = sorted(
    path.stem for path in (ROOT / "beam_jobs").glob("*.py") if "beam.Pipeline(" in path.read_text(encoding="utf-8")
)
# A template is one job: what would start several, when left out, must be given.
NEEDED_FOR_ONE_JOB = {
    "embed_listings": {"window_start", "window_end"},
    "load_index": {"index"},
    "verify_index": {"index"},
}


def options_of(job: str) -> dict[str, argparse.Action]:
    """The options that a job's own parser takes, by name."""

    class Parsing(Exception):
        """Ends the job where it would read its arguments."""

    def stop(self: argparse.ArgumentParser, *_: object, **__: object) -> None:
        found.extend(self._actions)
        raise Parsing

    found: list[argparse.Action] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        with pytest.raises(Parsing):
            importlib.import_module(f"beam_jobs.{job}").main([])
    return {action.dest: action for action in found if action.dest != "help"}


def template(job: str) -> dict[str, Any]:
    """What describes a job's template to Dataflow."""
    described: dict[str, Any] = json.loads((DATAFLOW / f"{job}.json").read_text())
    return described


def test_every_job_has_a_template_and_no_other() -> None:
    assert len(JOBS) >= 6
    assert sorted(path.stem for path in DATAFLOW.glob("*.json")) == JOBS


@pytest.mark.parametrize("job", JOBS)
def test_a_template_s_parameters_are_the_job_s_options(job: str) -> None:
    options = options_of(job)
    # A parameter always has a value, so flags cannot be given.
    valued = {name for name, action in options.items() if action.nargs != 0}
    parameters = template(job)["parameters"]
    assert {parameter["name"] for parameter in parameters} == valued
    required = {name for name, action in options.items() if action.required} | NEEDED_FOR_ONE_JOB.get(job, set())
    assert {parameter["name"] for parameter in parameters if not parameter["isOptional"]} == required


@pytest.mark.parametrize("job", JOBS)
def test_a_template_describes_its_parameters_and_takes_what_the_job_takes(job: str) -> None:
    described, options = template(job), options_of(job)
    assert described.keys() == {"name", "description", "parameters"}
    for parameter in described["parameters"]:
        assert parameter.keys() == {"name", "label", "helpText", "isOptional", "regexes"}
        action = options[parameter["name"]]
        [pattern] = parameter["regexes"]
        assert not re.search(pattern, "")
        taken = action.choices or ([] if action.default is None else [action.default])
        assert all(re.search(pattern, str(value)) for value in taken), parameter["name"]
        if parameter["name"].startswith("window_"):
            assert re.search(pattern, "2026-01-31T00:00:00Z")
            assert not re.search(pattern, "2026-01-31")


def test_beam_s_programs_are_of_the_installed_version() -> None:
    with (ROOT / "docker" / "Dockerfile").open("rb") as file:
        stages = [i["value"] for i in DockerfileParser(fileobj=file).structure if i["instruction"] == "FROM"]
    assert f"apache/beam_python3.11_sdk:{apache_beam.__version__} AS beam" in stages


def test_a_worker_becomes_beam_s_program_with_the_key_that_its_secret_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from google.cloud import secretmanager

    class Secrets:
        """Secret Manager's client, with one secret."""

        def access_secret_version(self, name: str) -> secretmanager.AccessSecretVersionResponse:
            assert name == "projects/p/secrets/key/versions/latest"
            return secretmanager.AccessSecretVersionResponse(payload={"data": b"the-key\n"})

    spec = importlib.util.spec_from_file_location("worker", DATAFLOW / "worker.py")
    assert spec is not None
    assert spec.loader is not None
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    monkeypatch.setattr(secretmanager, "SecretManagerServiceClient", Secrets)
    monkeypatch.setattr("sys.argv", ["worker.py", "--id=1", "--provision_endpoint=localhost:1"])
    became: list[tuple[str, list[str], str]] = []
    monkeypatch.setattr(
        os, "execv", lambda path, argv: became.append((path, argv, os.environ["LENS_ELASTICSEARCH_API_KEY"]))
    )
    for secret in ("", "projects/p/secrets/key/versions/latest"):
        monkeypatch.setenv("LENS_ELASTICSEARCH_API_KEY", "")
        monkeypatch.setenv("ELASTICSEARCH_API_KEY_SECRET", secret)
        worker.main()
    beam = "/opt/apache/beam/boot"
    argv = [beam, "--id=1", "--provision_endpoint=localhost:1"]
    assert became == [(beam, argv, ""), (beam, argv, "the-key")]
