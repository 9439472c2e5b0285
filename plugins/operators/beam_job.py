"""Runs a job of `beam_jobs` as a task."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from airflow.providers.apache.beam.operators.beam import BeamRunPythonPipelineOperator

from listing_lens.settings import load_settings
from plugins.hooks.beam_job import BeamJobHook

if TYPE_CHECKING:
    from airflow.sdk import Context


class BeamJobOperator(BeamRunPythonPipelineOperator):
    """Run `python -m beam_jobs.JOB` with this interpreter, on the runner that the settings name.

    Streams the job's log, survives a chatty job, and leaves no process behind when it times out or is killed.

    :param job: the module's name in `beam_jobs`.
    :param arguments: the job's options by name, without dashes; None leaves one out. (templated)
    """

    def __init__(self, *, job: str, arguments: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(
            py_file=f"beam_jobs.{job}",
            py_options=["-m"],
            py_interpreter=sys.executable,
            pipeline_options=arguments,
            # Deferred, a local pipeline would run inside the triggerer.
            deferrable=False,
            **kwargs,
        )

    def execute(self, context: Context) -> Any:
        # Read here rather than while the DAG is parsed.
        self.runner = load_settings().beam_runner
        return super().execute(context)

    def _init_pipeline_options(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._init_pipeline_options(*args, **kwargs)
        self.beam_hook = BeamJobHook(runner=self.runner)
        return prepared

    def on_kill(self) -> None:
        super().on_kill()
        if isinstance(getattr(self, "beam_hook", None), BeamJobHook):
            self.beam_hook.kill()
