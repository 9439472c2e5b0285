"""A program that a task runs: its output is followed line by line, and it ends with the task."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress

import psutil
from airflow.sdk.bases.hook import BaseHook
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from listing_lens.process_group import end_group

# argparse's exit code for wrong arguments: another attempt would end the same way.
_USAGE_ERROR = 2


class ProcessHook(BaseHook):
    """Runs a program in a process group of its own, with its output as one stream, line by line, in the task's log."""

    _process: subprocess.Popen[bytes] | None = None

    def run_program(
        self,
        what: str,
        command: Sequence[str],
        on_line: Callable[[str], None] | None = None,
        enough: Callable[[], bool] | None = None,
    ) -> None:
        """Run a program to its end, or until `enough`.

        Args:
            what: what messages call the program, e.g. "the Beam job".
            command: the program and its arguments.
            on_line: called with each line of its output.
            enough: asked after each line whether the program's work continues elsewhere, so that it need not be waited for.

        Raises:
            AirflowFailException: the program does not take its arguments.
            AirflowException: it failed; the message has the last line that it wrote.
        """
        self.log.info("Running command: %s", shlex.join(command))
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            self._follow(self._process, what, on_line, enough)
        finally:
            # Whatever ended the wait (the program's end, a timeout, the task's end), none of its processes is left.
            self.kill()

    def kill(self) -> None:
        """End the program and everything that it started: terminate first, then kill."""
        process, self._process = self._process, None
        if process is None:
            return
        # Launchers put each of their processes into a group of its own, and may end before ending those.
        started = _descendants(process)
        end_group(process)
        for child in started:
            with suppress(psutil.NoSuchProcess):
                child.kill()

    def _follow(
        self,
        process: subprocess.Popen[bytes],
        what: str,
        on_line: Callable[[str], None] | None,
        enough: Callable[[], bool] | None,
    ) -> None:
        assert process.stdout is not None
        last = ""
        for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip()
            self.log.info(line)
            last = line or last
            if on_line:
                on_line(line)
            if enough and enough():
                return
        code = process.wait()
        if code == _USAGE_ERROR:
            raise AirflowFailException(f"{what} does not take its arguments: {last}")
        if code:
            raise AirflowException(f"{what} ended with code {code}: {last}")


def _descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    # The id of a process that has ended may belong to another one by now.
    if process.poll() is not None:
        return []
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []
