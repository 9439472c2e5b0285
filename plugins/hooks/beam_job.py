"""Beam's hook with a process that can be watched and stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airflow.providers.apache.beam.hooks.beam import BeamHook, beam_options_to_args
from airflow.sdk.exceptions import AirflowFailException

from plugins.hooks.process import ProcessHook


class BeamJobHook(ProcessHook, BeamHook):
    """Runs a pipeline in a process group of its own, with its output as one stream, line by line, in the task's log.

    The provider's hook reads two pipes in turn, each to its end: a job that fills the other one blocks forever, the log
    appears only at the end, and the process outlives a task that is killed or times out. Before each job it also imports
    Beam in another process to ask for its version, which takes as long as a small job.
    """

    def start_python_pipeline(
        self,
        variables: dict[str, Any],
        py_file: str,
        py_options: list[str],
        py_interpreter: str = "python3",
        py_requirements: list[str] | None = None,
        py_system_site_packages: bool = False,
        process_line_callback: Callable[[str], None] | None = None,
        is_dataflow_job_id_exist_callback: Callable[[], bool] | None = None,
    ) -> None:
        """Run a pipeline to its end or, on Dataflow, until it is submitted: from then on it is watched there.

        Raises:
            AirflowFailException: the job does not take its arguments.
            AirflowException: it failed; the message has the last line that it wrote.
        """
        if py_requirements or py_system_site_packages:
            raise AirflowFailException("a job runs with this environment's packages: py_requirements is not supported")
        labels = [f"{key}={value}" for key, value in variables.get("labels", {}).items()]
        options = beam_options_to_args({**variables, "labels": labels})
        command = [py_interpreter, *py_options, py_file, f"--runner={self.runner}", *options]
        self.run_program("the Beam job", command, process_line_callback, is_dataflow_job_id_exist_callback)
