"""Runs a job of `beam_jobs` as a task."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from airflow.providers.apache.beam.operators.beam import BeamRunPythonPipelineOperator
from airflow.sdk.exceptions import AirflowFailException

from listing_lens.settings import Settings, load_settings
from plugins.hooks.beam_job import BeamJobHook

if TYPE_CHECKING:
    from airflow.sdk import Context

_DATAFLOW = "DataflowRunner"


class BeamJobOperator(BeamRunPythonPipelineOperator):
    """Run `python -m beam_jobs.JOB` with this interpreter, on the runner that the settings name.

    Streams the job's log, survives a chatty job, and leaves no process behind when it times out or is killed. On Dataflow
    the job that is running then is cancelled too.

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
        # Read here, not while the DAG is parsed.
        settings = load_settings()
        self.runner = settings.beam_runner
        if self.runner == _DATAFLOW:
            self.dataflow_config = _place_of(settings)
        return super().execute(context)

    def execute_on_dataflow(self, context: Context) -> dict[str, str | None]:
        """Follow the program to its end, rather than to its first job on Dataflow.

        It watches its jobs there itself, may start several in turn, and reports in one sentence why one failed.
        """
        self.beam_hook.start_python_pipeline(
            variables=self.snake_case_pipeline_options,
            py_file=self.py_file,
            py_options=self.py_options,
            py_interpreter=self.py_interpreter,
            process_line_callback=self.process_line_callback,
        )
        return {"dataflow_job_id": self.dataflow_job_id}

    def _init_pipeline_options(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._init_pipeline_options(*args, **kwargs)
        self.beam_hook = BeamJobHook(runner=self.runner)
        return prepared

    def on_kill(self) -> None:
        super().on_kill()
        if isinstance(getattr(self, "beam_hook", None), BeamJobHook):
            self.beam_hook.kill()


class BuildStepOperator(BeamJobOperator):
    """Run a job as a step of an index's build: under the build's lock, and in its record.

    :param index: the build's index. (templated)
    """

    template_fields = (*BeamJobOperator.template_fields, "index")

    def __init__(self, *, index: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.index = index

    def execute(self, context: Context) -> Any:
        from listing_lens.search.lifecycle import connect_builds

        with connect_builds(load_settings()).step(self.index, self.task_id):
            return super().execute(context)


def _place_of(settings: Settings) -> dict[str, str]:
    """The settings' place on Dataflow, given explicitly: the provider's own default region would override it."""
    missing = [name for name in ("project", "region", "temp_location") if not settings.beam_options.get(name)]
    if missing:
        raise AirflowFailException(f"Dataflow needs {', '.join(missing)}: set it in LENS_BEAM_OPTIONS")
    return {"project_id": settings.beam_options["project"], "location": settings.beam_options["region"]}
