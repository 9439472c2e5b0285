"""The container files, checked without a container engine: a mistake in them would show first on a user's machine.

Linters read the syntax (the Compose schema, hadolint, ShellCheck); the rest are the rules of this project that no
linter knows: where ports are bound, where secrets and versions come from, which settings exist, what the images hold.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfile_parse import DockerfileParser

from listing_lens.settings import Settings, load_settings
from models.embedder import MODEL
from plugins.operators.training import PROGRAM, training_task

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SCRIPTS = sorted(DOCKER.rglob("*.sh"))
PINNED = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
SECRET_NAME = re.compile(r"PASSWORD|SECRET|FERNET|API_KEY|TOKEN")
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?:(:?[-?])([^}]*))?\}")

each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)


def tool(name: str, *arguments: str | Path) -> None:
    """Run a linter that is installed beside this Python; what it prints is the message of the failure."""
    command = [Path(sys.executable).with_name(name), *arguments]
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def stages() -> dict[str, list[dict[str, Any]]]:
    """The Dockerfile's instructions, by the name of their stage."""
    found: dict[str, list[dict[str, Any]]] = {}
    with (DOCKER / "Dockerfile").open("rb") as file:
        for instruction in DockerfileParser(fileobj=file).structure:
            if instruction["instruction"] == "FROM":
                current = found.setdefault(instruction["value"].split(" AS ")[1], [])
            if instruction["instruction"] != "COMMENT":
                current.append(instruction)
    return found


STAGES = stages()
RUNS = "\n".join(i["value"] for stage in STAGES.values() for i in stage if i["instruction"] == "RUN")
# What compose.yaml builds, and what others run: a cluster trains in the third image, Dataflow has two of its own.
TARGETS = {service["build"]["target"] for service in SERVICES.values() if "build" in service} | {"training"}
DATAFLOW_TARGETS = {"worker", "template"}
# Images that a stage only copies programs from.
SOURCES = {"beam", "launcher"}
EXAMPLES = re.findall(r"```json\n(.*?)```", (DOCKER / "README.md").read_text(), re.DOTALL)


def values(stage: str, instruction: str) -> list[str]:
    """What a stage says with an instruction."""
    return [i["value"] for i in STAGES[stage] if i["instruction"] == instruction]


def health_check(service: dict[str, Any]) -> bool:
    """Whether a service has one, its own or its image's."""
    if "healthcheck" in service:
        return True
    return any(value != "NONE" for value in values(service.get("build", {}).get("target", "base"), "HEALTHCHECK"))


def one_shot(name: str) -> bool:
    """Whether a service is to end: it is not restarted, and others wait until it has succeeded."""
    waited_for = [s["depends_on"][name]["condition"] for s in SERVICES.values() if name in s.get("depends_on", {})]
    return SERVICES[name].get("restart") == "no" and "service_completed_successfully" in waited_for


def variables() -> dict[str, set[tuple[str, str]]]:
    """Each variable that compose.yaml takes from .env, with what stands behind its name where it is used."""
    found: dict[str, set[tuple[str, str]]] = {}
    text = "\n".join(line for line in (DOCKER / "compose.yaml").read_text().splitlines() if line.strip()[:1] != "#")
    for name, operator, rest in VARIABLE.findall(text):
        found.setdefault(name, set()).add((operator, rest))
    return found


def example() -> dict[str, str]:
    """The variables of .env.example."""
    lines = (DOCKER / ".env.example").read_text().splitlines()
    pairs = [line.split("=", 1) for line in lines if line and not line.startswith("#")]
    assert len(pairs) == len({name for name, _ in pairs}), "a variable stands twice"
    return dict(pairs)


# ---- linters ---------------------------------------------------------------------------------------------------------


def test_compose_file_fits_the_schema() -> None:
    tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", DOCKER / "compose.yaml")


def test_hadolint_finds_nothing() -> None:
    tool("hadolint", "--no-color", "--failure-threshold", "style", DOCKER / "Dockerfile")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    tool("shellcheck", "--enable=quote-safe-variables,check-extra-masked-returns", script)
    assert script.stat().st_mode & 0o111, f"{script.name} cannot be executed"


# ---- Elasticsearch ---------------------------------------------------------------------------------------------------


def test_the_api_key_covers_every_name_that_begins_with_the_alias() -> None:
    script = (DOCKER / "elasticsearch/api-key.sh").read_text()
    [pattern] = json.loads(re.findall(r'"names": (\[.*?\])', script)[0])
    alias = load_settings().alias
    ends = ("", ".builds", ".loads", ".epoch-1", "-space-build", ".space-build")
    assert all(fnmatch(f"{alias}{end}", pattern) for end in ends)


# ---- compose.yaml ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_healthy_or_ends(name: str) -> None:
    assert health_check(SERVICES[name]) != one_shot(name)


@pytest.mark.parametrize("name", SERVICES)
def test_service_waits_for_what_can_come(name: str) -> None:
    for other, wait in SERVICES[name].get("depends_on", {}).items():
        if wait["condition"] == "service_healthy":
            assert health_check(SERVICES[other]), f"{other} has no health check"
        else:
            assert wait["condition"] == "service_completed_successfully", f"{other} may not be ready yet"
            assert one_shot(other), f"{other} does not end"


@each_service
def test_ports_are_bound_to_this_machine(service: dict[str, Any]) -> None:
    assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", []))
    assert "network_mode" not in service


@each_service
def test_service_is_confined(service: dict[str, Any]) -> None:
    assert {"mem_limit", "cpus"} <= service.keys()
    assert "no-new-privileges:true" in service["security_opt"]
    assert not service.get("privileged", False)


@each_service
def test_image_is_pinned(service: dict[str, Any]) -> None:
    tag = service["image"].rpartition("/")[2].partition(":")[2]
    assert tag == "local" if "build" in service else re.match(r"\d+\.\d+", tag)


def test_elasticsearch_is_the_one_of_the_local_stack() -> None:
    (manifest,) = (ROOT / "listing_lens/stack").glob("elasticsearch-*.sha256")
    assert SERVICES["elasticsearch"]["image"].endswith(f":{manifest.stem.removeprefix('elasticsearch-')}")


def test_triton_serves_what_the_command_writes() -> None:
    triton, scheduler = SERVICES["triton"], SERVICES["airflow-scheduler"]
    [repository] = [word.partition("=")[2] for word in triton["command"] if word.startswith("--model-repository=")]
    [(volume, _)] = [entry.split(":")[:2] for entry in triton["volumes"] if entry.split(":")[1] == repository]
    [exported] = [entry.split(":")[1] for entry in scheduler["volumes"] if entry.startswith(f"{volume}:")]
    readme = (DOCKER / "triton" / "README.md").read_text()
    assert f"lens triton export --to {exported}" in readme
    assert f"--load-model={MODEL}" in triton["command"]
    assert triton["image"] in readme


@pytest.mark.parametrize("kind", ["volumes", "secrets", "configs"])
def test_what_is_declared_is_used_and_the_reverse(kind: str) -> None:
    used = set()
    for service in SERVICES.values():
        for entry in service.get(kind, []):
            source = entry["source"] if isinstance(entry, dict) else entry.split(":")[0]
            if kind == "volumes" and source.startswith("."):
                assert (DOCKER / source).is_file()
            else:
                used.add(source)
    assert used == set(COMPOSE[kind])


@each_service
def test_secrets_that_are_read_are_given(service: dict[str, Any]) -> None:
    given = {entry["source"] if isinstance(entry, dict) else entry for entry in service.get("secrets", [])}
    assert set(re.findall(r"/run/secrets/(\w+)", yaml.safe_dump(service, width=10_000))) <= given


def test_lens_variables_are_settings() -> None:
    known = {f"LENS_{name.upper()}" for name in Settings.model_fields}
    names = {name for service in SERVICES.values() for name in service.get("environment", {})}
    assert {name for name in names | example().keys() if name.startswith("LENS_")} <= known


def test_airflow_variables_are_options() -> None:
    spec = importlib.util.find_spec("airflow")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    config = Path(spec.submodule_search_locations[0], "config_templates", "config.yml")
    sections = yaml.safe_load(config.read_text())
    options = {
        f"AIRFLOW__{section.upper()}__{name.upper()}": option
        for section, content in sections.items()
        for name, option in content["options"].items()
    }
    image = {name for value in values("airflow", "ENV") for name in re.findall(r"(AIRFLOW__\w+)=", value)}
    for name in image | {name for service in SERVICES.values() for name in service.get("environment", {})}:
        if name.startswith("AIRFLOW__"):
            plain = name.removesuffix("_CMD")
            assert plain in options, f"{name}: no such option"
            # Only of a sensitive option does Airflow run the command.
            assert plain == name or options[plain].get("sensitive"), f"{name} would not be read"


# ---- .env ------------------------------------------------------------------------------------------------------------


def test_example_names_every_variable_and_no_other() -> None:
    from_environment = {secret["environment"] for secret in COMPOSE["secrets"].values()}
    assert example().keys() == variables().keys() | from_environment


def test_example_has_the_defaults() -> None:
    for name, uses in variables().items():
        for operator, rest in uses:
            assert operator == ":?" or (operator, rest) == (":-", example()[name]), name


def test_secrets_have_no_default_and_must_be_given() -> None:
    required = {name for name, uses in variables().items() if any(operator == ":?" for operator, _ in uses)}
    secrets = {secret["environment"] for secret in COMPOSE["secrets"].values()}
    named = {name for name in example() if SECRET_NAME.search(name)} - {"LENS_ELASTICSEARCH_API_KEY"}
    assert required == secrets | {"AIRFLOW_ADMIN_PASSWORD"} == named
    assert not any(example()[name] for name in required)


@each_service
def test_no_secret_stands_in_the_environment(service: dict[str, Any]) -> None:
    for name, value in service.get("environment", {}).items():
        if SECRET_NAME.search(name):
            file = name.endswith(("_FILE", "_CMD"))
            assert file or value == f"${{{name}:-}}", f"{name} holds its value"
        assert not re.search(r"://[^/@{]*:[^/@%{]+@", str(value)), f"{name} holds a password"


def test_env_file_is_never_committed_or_built_in() -> None:
    assert ".env" in (DOCKER / ".gitignore").read_text().splitlines()
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    assert allowed[1] == "*"
    assert not any(line in {"!docker", "!docker/", "!.env"} for line in allowed)


# ---- Dockerfile ------------------------------------------------------------------------------------------------------


def test_stages_come_from_one_pinned_base() -> None:
    bases = {stage: values(stage, "FROM")[0].split(" AS ")[0] for stage in STAGES}
    foreign = {image for stage, image in bases.items() if image not in STAGES and stage not in SOURCES}
    assert len(foreign) == 1
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?", foreign.pop())
    assert STAGES.keys() >= TARGETS | DATAFLOW_TARGETS
    assert all(bases[target] == "base" for target in TARGETS | {"worker"}), "build tools in an image"
    assert all(re.search(r":\d[\w.]+$", bases[source]) for source in SOURCES), "not pinned"


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_image_does_not_run_as_root(target: str) -> None:
    user = values(target, "USER")[-1]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert f"--uid {user.split(':')[0]} " in values("base", "RUN")[0]


@pytest.mark.parametrize("target", sorted(TARGETS | DATAFLOW_TARGETS))
def test_image_says_how_it_is_healthy(target: str) -> None:
    assert len(values(target, "HEALTHCHECK")) == 1


def test_versions_come_from_requirements_alone() -> None:
    assert not re.search(r"[\w\]](==|>=|~=|<)\d", RUNS)
    installs = re.findall(r"pip install ([^&;|\n]*)", RUNS)
    assert len(installs) == 5
    for install in installs:
        assert "constraint requirements.txt" in install, install
        # An option with a value takes it along; what stays are the packages.
        packages = re.sub(
            r"--(?:build-)?(?:constraint|requirement|extra|default-index) \S+|--no-deps", "", install
        ).split()
        assert {package for package in packages if package != "."} <= PINNED.keys(), install


def test_drivers_are_pinned_once_and_only_here() -> None:
    lines = [line for line in (DOCKER / "postgres/drivers.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in lines)
    assert {line.split("==")[0] for line in lines} == {"asyncpg", "psycopg2-binary"} - PINNED.keys()


def test_nothing_names_a_package_index() -> None:
    # Whose index is used is the affair of who builds.
    for path in [
        path for path in DOCKER.rglob("*") if path.is_file() and path.suffix != ".pyc" and path.name != ".env"
    ]:
        hosts = set(re.findall(r"https?://([\w.-]*[a-z][\w-]*\.[a-z]{2,})", path.read_text()))
        assert not hosts, f"{path.name}: {hosts}"
    assert values("airflow-builder", "ARG") == ['TORCH_INDEX=""']


def test_training_runs_the_program_that_the_dag_runs() -> None:
    assert json.loads(values("training", "ENTRYPOINT")[0]) == ["python", "-m", PROGRAM]


def test_training_has_the_packages_and_the_code_of_the_jobs() -> None:
    from_builder = [value for value in values("airflow", "COPY") if "--from=" in value]
    assert [value for value in values("training", "COPY") if "--from=" in value] == from_builder


@pytest.mark.parametrize(("example", "place"), zip(EXAMPLES, ("kubernetes", "vertex"), strict=True))
def test_the_readme_s_examples_of_training_are_taken(example: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "LAKE": "gs://bucket/lake",
        "MLFLOW_URL": "https://mlflow.example.com",
        "TRAINING_PLACE": place,
        "TRAINING_FOLDER": "/checkpoints",
        "TRAINING_IMAGE": "images.example.com/training:1",
        "TRAINING_OPTIONS": example,
    }.items():
        monkeypatch.setenv(f"LENS_{name}", value)
    assert training_task(task_id="train", command="train", arguments={}).task_id == "train"


def test_copied_files_reach_the_build() -> None:
    allowed = [line[1:].rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"]
    for stage in STAGES:
        for value in values(stage, "COPY"):
            *sources, _ = [word for word in value.split() if not word.startswith("--")]
            if "--from=" not in value and sources != ["."]:
                assert set(sources) <= set(allowed), value


def test_the_wheel_in_the_image_holds_every_file(tmp_path: Path) -> None:
    """A data file that pyproject.toml does not declare is there in a checkout and missing in the image."""
    packages = ["beam_jobs", "dags", "listing_lens", "models", "plugins"]
    source = tmp_path / "source"
    for package in packages:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__", "*.md"))
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    tool("uv", "build", "--quiet", "--offline", "--wheel", "--no-build-isolation", "--python", sys.executable, source)
    (wheel,) = (source / "dist").glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert [name for name in held if name.endswith(".dist-info/licenses/LICENSE")]
    files = {str(path.relative_to(source)) for p in packages for path in (source / p).rglob("*") if path.is_file()}
    assert files - held == set()


# ---- the health check ------------------------------------------------------------------------------------------------


def healthy() -> Any:
    """The script of the images, as a module."""
    spec = importlib.util.spec_from_file_location("healthy", DOCKER / "healthy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("component", "status"),
    [("", 0), ("scheduler", 0), ("triggerer", 1), ("dag_processor", 1)],
    ids=["answers", "healthy", "unhealthy", "never seen"],
)
def test_health_is_the_exit_status(tmp_path: Path, component: str, status: int) -> None:
    report = tmp_path / "health.json"
    report.write_text(
        '{"scheduler": {"status": "healthy"}, "triggerer": {"status": "unhealthy"}, "dag_processor": {"status": null}}'
    )
    assert healthy().main(report.as_uri(), component) == status


def test_a_server_that_does_not_answer_is_not_healthy() -> None:
    command: list[str | Path] = [sys.executable, DOCKER / "healthy.py", "http://127.0.0.1:1/health"]
    refused = subprocess.run(command, check=False, capture_output=True)
    assert refused.returncode != 0
