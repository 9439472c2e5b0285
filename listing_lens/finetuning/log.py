"""The log of a training: the process's log, a file beside the checkpoints, and MLflow while it can be reached."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from mlflow.exceptions import MlflowException

from listing_lens import progress
from listing_lens.finetuning.records import Finetune
from listing_lens.settings import Settings
from models.registry import Registry

logger = logging.getLogger(__name__)

# By default, MLflow's client would wait minutes for an unreachable server, at every logged step.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

# Everything that was logged, one entry per line, in the training's folder.
HISTORY = "history.jsonl"


class Silence:
    """The log of a process that is not the first."""

    def step(self, step: int, total: int, metrics: Mapping[str, float]) -> None: ...

    def validation(self, step: int, metrics: Mapping[str, float], figure: Figure | None) -> None: ...


@dataclass(frozen=True)
class MlflowRun:
    """The training's run in MLflow."""

    registry: Registry
    run_id: str

    @classmethod
    def start(cls, name: str, key: str, parameters: Mapping[str, object], settings: Settings) -> MlflowRun | None:
        """None if no server is configured."""
        if not settings.mlflow_url:
            logger.warning("LENS_MLFLOW_URL is not set: the training is logged here alone")
            return None
        registry = Registry.connect(settings.mlflow_url)
        return cls(registry, registry.start_finetuning(name, parameters, key=key))


class LiveLog:
    """Reports a training's progress: to this log, to a file beside its checkpoints, and to MLflow while it can be reached."""

    def __init__(self, history: Path, run: MlflowRun | None) -> None:
        self.run = run
        self._history = history
        self._done = 0
        if history.exists():
            # A line half written before a kill would spoil the next one.
            whole = history.read_bytes().rpartition(b"\n")
            history.write_bytes(whole[0] + whole[1])

    def __enter__(self) -> LiveLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.run:
            with _survives_outages():
                self.run.registry.end(self.run.run_id, "FAILED" if kind else "FINISHED")

    def step(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        progress.advance("steps trained", step - self._done, total)
        self._done = step
        self._keep(step, metrics)

    def validation(self, step: int, metrics: Mapping[str, float], figure: Figure | None) -> None:
        logger.info("step %s: %s", step, ", ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
        self._keep(step, metrics)
        if self.run and figure:
            with _survives_outages():
                self.run.registry.log_figure(self.run.run_id, figure, f"retrievals/{step:06d}.png")

    def replay(self) -> None:
        """Log to MLflow what was logged when this training ran; for repeated steps, their last values."""
        if self.run is None:
            return
        kept = [json.loads(line) for line in self._history.read_text().splitlines()]
        by_step = {(line["step"], *line["metrics"]): line for line in kept}
        with _survives_outages():
            for line in by_step.values():
                self.run.registry.log_metrics(self.run.run_id, line["metrics"], line["step"])

    def _keep(self, step: int, metrics: Mapping[str, float]) -> None:
        with self._history.open("a") as file:
            file.write(json.dumps({"step": step, "metrics": dict(metrics)}) + "\n")
        if self.run:
            with _survives_outages():
                self.run.registry.log_metrics(self.run.run_id, metrics, step)


@contextmanager
def _survives_outages() -> Iterator[None]:
    """Days of training must not be lost because a server was away for a minute."""
    try:
        yield
    except (MlflowException, OSError) as err:
        logger.warning("MLflow did not take the training's log (%s): %s keeps it as well", err, HISTORY)


def log_comparison(record: Finetune, figure: Figure, settings: Settings) -> None:
    """Add a comparison's figure to the training's run, where there is one."""
    if record.mlflow_run_id and settings.mlflow_url:
        Registry.connect(settings.mlflow_url).log_figure(record.mlflow_run_id, figure, "comparison.png")
