"""A program that a task runs: followed line by line, and gone when the task is."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress

import psutil
from airflow.sdk.bases.hook import BaseHook
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from listing_lens.process_group import end_group

# How argparse ends a program whose arguments are wrong: another try would end the same.
_USAGE_ERROR = 2


class ProcessHook(BaseHook):
    """Runs a program in a process group of its own, its output as one stream, line by line into the task's log."""

    _process: subprocess.Popen[bytes] | None = None

    def run_program(
        self,
        what: str,
        command: Sequence[str],
        on_line: Callable[[str], None] | None = None,
        enough: Callable[[], bool] | None = None,
    ) -> None:
        """Run a program to its end, or until enough of it was seen.

        Args:
            what: the program in a sentence, e.g. "the Beam job".
            command: the program and its arguments.
            on_line: is given each line of its output.
            enough: asked after each line whether the program's work goes on elsewhere, so that it need not be awaited.

        Raises:
            AirflowFailException: the program does not take its arguments.
            AirflowException: it failed; with the last line that it wrote.
        """
        self.log.info("Running command: %s", shlex.join(command))
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            self._follow(self._process, what, on_line, enough)
        finally:
            # Whatever ended the wait (the program, a timeout, the task's end), no process of it is left.
            self.kill()

    def kill(self) -> None:
        """End the program with all that it started: asked first, then forced."""
        process, self._process = self._process, None
        if process is None:
            return
        # Launchers of several processes put each into a group of its own, and may not outlive the request to end them.
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
    # One that has ended may have left its id to a stranger.
    if process.poll() is not None:
        return []
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []
