"""Beam's hook with a process that can be watched and stopped."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Callable
from typing import Any

from airflow.providers.apache.beam.hooks.beam import BeamHook, beam_options_to_args
from airflow.sdk.exceptions import AirflowException

# What a job gets to end by itself after it was asked to.
_GRACE_S = 10


class BeamJobHook(BeamHook):
    """Runs a pipeline in a process group of its own, its output as one stream, line by line into the task's log.

    The provider's hook reads two pipes in turn, each to its end: a job that fills the other one waits for ever, the log
    comes at the end, and the process outlives a task that is killed or runs out of time.
    """

    _process: subprocess.Popen[bytes] | None = None

    def _start_pipeline(
        self,
        variables: dict[str, Any],
        command_prefix: list[str],
        process_line_callback: Callable[[str], None] | None = None,
        working_directory: str | None = None,
        is_dataflow_job_id_exist_callback: Callable[[], bool] | None = None,
    ) -> None:
        command = [*command_prefix, f"--runner={self.runner}", *beam_options_to_args(variables)]
        self.log.info("Running command: %s", shlex.join(command))
        self._process = subprocess.Popen(
            command, cwd=working_directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            self._follow(self._process, process_line_callback, is_dataflow_job_id_exist_callback)
        finally:
            # Whatever ended the wait (the job, a timeout, the task's end), no process of the job is left.
            self.kill()

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
        if process.wait():
            raise AirflowException(f"the Beam job ended with code {process.returncode}: {last}")

    def kill(self) -> None:
        """End the job's whole process group: asked first, then forced."""
        if self._process is None:
            return
        group = self._process.pid
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_S)
            os.killpg(group, signal.SIGKILL)
        self._process.wait()
        self._process = None
