"""Running a Beam job from the terminal: in a process of its own, with its log in a file and its progress as it comes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from listing_lens.errors import LensError
from listing_lens.process_group import end_group
from listing_lens.progress import Progress
from listing_lens.settings import Settings

_LAST_LINES = 15


def run_job(
    name: str, arguments: Sequence[str], settings: Settings, on_progress: Callable[[Progress], None] = lambda _: None
) -> None:
    """Run `python -m beam_jobs.NAME` to its end.

    Raises:
        LensError: the job failed; the message is the job's own sentence, or the last lines of its log.
    """
    logs = settings.home / "logs" / "jobs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise LensError(
            f"logs cannot be kept in {logs} ({err.strerror}): set LENS_HOME to a folder that can be written"
        ) from err
    log = logs / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}.log"
    command = [sys.executable, "-m", f"beam_jobs.{name}", *arguments]
    last: deque[str] = deque(maxlen=_LAST_LINES)
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **settings.environment},
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        with log.open("w") as file:
            for line in process.stdout:
                file.write(line)
                last.append(line.rstrip())
                if progress := Progress.parse(line):
                    on_progress(progress)
        process.wait()
    except BaseException:
        # An interrupted command leaves no job behind.
        end_group(process)
        raise
    if process.returncode:
        refusal = next((line.removeprefix("error: ") for line in reversed(last) if line.startswith("error: ")), None)
        raise LensError(
            refusal or f"job {name} failed (exit {process.returncode}); its log is {log}:\n" + "\n".join(last)
        )
