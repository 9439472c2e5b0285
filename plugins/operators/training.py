"""Runs the fine-tuning program as a task where the settings say: on this host, in a pod, or on Vertex AI."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow.sdk import BaseOperator

from listing_lens.errors import LensError
from listing_lens.settings import Settings, load_settings
from plugins.hooks.process import ProcessHook

if TYPE_CHECKING:
    from airflow.sdk import Context

PROGRAM = "listing_lens.finetuning"

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# How long a pod may take to start: a cluster may first have to add a machine with a GPU, which then pulls the image.
_STARTUP_S = 1800


def training_task(
    *, task_id: str, command: str, arguments: Mapping[str, str | Sequence[str]], **kwargs: Any
) -> BaseOperator:
    """A task that runs `python -m listing_lens.finetuning COMMAND` where `LENS_TRAINING_PLACE` says.

    Settings are read while the DAG is parsed: if the place lacks something, the DAG's import error says what. They are
    passed to a pod or to Vertex AI as environment variables, without secrets.

    Args:
        task_id: the task's id.
        command: `train` or `compare`. Only training runs in several processes.
        arguments: the command's options by name, without dashes; several values follow one name. (templated)
        kwargs: arguments of every operator, e.g. `execution_timeout`.

    Raises:
        LensError: a setting that the place needs is missing, or does not fit it.
    """
    settings = load_settings()
    words = [command, *(word for name, value in arguments.items() for word in _option(name, value))]
    processes = settings.training_processes if command == "train" else 1
    return _PLACES[settings.training_place](settings, processes, words, {"task_id": task_id, **kwargs})


class TrainingProcessOperator(BaseOperator):
    """Run a command as a process of this host.

    Streams its log, and leaves no process behind when it times out or is killed.

    :param command: the program and its arguments. (templated)
    """

    template_fields: Sequence[str] = ("command",)

    def __init__(self, *, command: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.command = command
        self._hook: ProcessHook | None = None

    def execute(self, context: Context) -> None:
        self._hook = ProcessHook()
        self._hook.run_program("the training program", self.command)

    def on_kill(self) -> None:
        if self._hook:
            self._hook.kill()


# ---- the places ------------------------------------------------------------------------------------------------------


def _on_host(settings: Settings, processes: int, words: Sequence[str], common: Mapping[str, Any]) -> BaseOperator:
    if settings.training_options:
        raise LensError("LENS_TRAINING_OPTIONS is set, but the host takes no options: set LENS_TRAINING_PLACE as well")
    return TrainingProcessOperator(command=_command(sys.executable, processes, words), **common)


def _in_pod(settings: Settings, processes: int, words: Sequence[str], common: Mapping[str, Any]) -> BaseOperator:
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

    _check_elsewhere(settings, needed=("namespace",))
    options = {"startup_timeout_seconds": _STARTUP_S, **settings.training_options}
    variables = options.pop("env_vars", {}) | settings.environment_elsewhere
    return _build(
        KubernetesPodOperator,
        options,
        common,
        name=f"listing-lens-{common['task_id']}",
        image=settings.training_image,
        cmds=_command("python", processes, words),
        env_vars=variables,
    )


def _on_vertex(settings: Settings, processes: int, words: Sequence[str], common: Mapping[str, Any]) -> BaseOperator:
    from airflow.providers.google.cloud.operators.vertex_ai.custom_job import CreateCustomContainerTrainingJobOperator

    _check_elsewhere(settings, needed=("project", "region", "staging_bucket"))
    if not settings.lake.startswith("gs://"):
        raise LensError(f"LENS_LAKE={settings.lake} is a folder of this machine: Vertex AI needs a lake on gs://")
    options = dict(settings.training_options)
    project = options.pop("project")
    variables = options.pop("environment_variables", {}) | settings.environment_elsewhere
    return _build(
        CreateCustomContainerTrainingJobOperator,
        options,
        common,
        project_id=project,
        display_name=f"listing-lens {common['task_id']} {{{{ dag_run.run_id }}}}",
        container_uri=settings.training_image,
        command=_command("python", processes, words),
        environment_variables=variables,
    )


_PLACES: dict[str, Callable[[Settings, int, Sequence[str], Mapping[str, Any]], BaseOperator]] = {
    "host": _on_host,
    "kubernetes": _in_pod,
    "vertex": _on_vertex,
}


def _build(
    operator: type[BaseOperator], options: Mapping[str, Any], common: Mapping[str, Any], **ours: Any
) -> BaseOperator:
    ours |= common
    if taken := sorted(options.keys() & ours.keys()):
        raise LensError(f"LENS_TRAINING_OPTIONS: {taken[0]} is not yours to set, the task sets it: leave it out")
    try:
        return operator(**options, **ours)
    except TypeError as err:
        told = " ".join(str(err).split())
        raise LensError(f"LENS_TRAINING_OPTIONS do not fit {operator.__name__}: {told}") from err


def _check_elsewhere(settings: Settings, needed: Iterable[str]) -> None:
    """Raise LensError when a setting is missing, or names something that another machine cannot reach."""
    place = settings.training_place
    if not settings.training_image:
        raise LensError(
            f"LENS_TRAINING_IMAGE is not set: {place} needs the image of docker/Dockerfile's target training"
        )
    for name in needed:
        if not settings.training_options.get(name):
            raise LensError(f"LENS_TRAINING_OPTIONS lacks {name!r}, which {place} needs")
    if not settings.keeps_checkpoints:
        raise LensError(
            f"LENS_TRAINING_FOLDER is not set: {place} needs a folder that outlives the container, so that a training "
            "that was killed goes on from its last checkpoint"
        )
    if not settings.mlflow_url or urlsplit(settings.mlflow_url).hostname in _LOOPBACK:
        given = settings.mlflow_url or "not set"
        raise LensError(f"LENS_MLFLOW_URL is {given}: {place} needs an address that other machines can reach")


# ---- the command -----------------------------------------------------------------------------------------------------


def _command(python: str, processes: int, words: Sequence[str]) -> list[str]:
    launcher = ("-m", "accelerate.commands.launch", f"--num_processes={processes}", *_LAUNCHED_ON_ONE_MACHINE)
    return [python, *(launcher if processes > 1 else ()), "-m", PROGRAM, *words]


# Accelerate would warn that it assumes these. The recipe decides the precision.
_LAUNCHED_ON_ONE_MACHINE = ("--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no")


def _option(name: str, value: str | Sequence[str]) -> list[str]:
    return [f"--{name}={value}"] if isinstance(value, str) else [f"--{name}", *value] if value else []
