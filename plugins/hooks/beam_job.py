"""Beam's hook with a process that can be watched and stopped."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from typing import Any

from airflow.providers.apache.beam.hooks.beam import BeamHook, beam_options_to_args
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from listing_lens.process_group import end_group

# How argparse ends a program whose arguments are wrong: another try would end the same.
_USAGE_ERROR = 2


class BeamJobHook(BeamHook):
    """Runs a pipeline in a process group of its own, its output as one stream, line by line into the task's log.

    The provider's hook reads two pipes in turn, each to its end: a job that fills the other one waits for ever, the log
    comes at the end, and the process outlives a task that is killed or runs out of time. It also imports Beam in a
    process of its own, before each job, to ask for its version, which takes as long as a small job.
    """

    _process: subprocess.Popen[bytes] | None = None

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
        """Run a pipeline to its end, or to its submission when it runs on Dataflow.

        Raises:
            AirflowFailException: the job does not take its arguments.
            AirflowException: it failed; with the last line that it wrote.
        """
        if py_requirements or py_system_site_packages:
            raise AirflowFailException("a job runs with this environment's packages: py_requirements is not supported")
        labels = [f"{key}={value}" for key, value in variables.get("labels", {}).items()]
        options = beam_options_to_args({**variables, "labels": labels})
        command = [py_interpreter, *py_options, py_file, f"--runner={self.runner}", *options]
        self.log.info("Running command: %s", shlex.join(command))
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            self._follow(self._process, process_line_callback, is_dataflow_job_id_exist_callback)
        finally:
            # Whatever ended the wait (the job, a timeout, the task's end), no process of the job is left.
            self.kill()

    def kill(self) -> None:
        """End the job's whole process group: asked first, then forced."""
        process, self._process = self._process, None
        if process is not None:
            end_group(process)

    def _follow(
        self,
        process: subprocess.Popen[bytes],
        on_line: Callable[[str], None] | None,
        submitted: Callable[[], bool] | None,
    ) -> None:
        assert process.stdout is not None
        last = ""
        for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip()
            self.log.info(line)
            last = line or last
            if on_line:
                on_line(line)
            if submitted and submitted():
                # The job runs on Dataflow now, and is watched there.
                return
        code = process.wait()
        if code == _USAGE_ERROR:
            raise AirflowFailException(f"the Beam job does not take its arguments: {last}")
        if code:
            raise AirflowException(f"the Beam job ended with code {code}: {last}")
