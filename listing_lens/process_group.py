"""Ending a job that was started in a process group of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress

# How long a job may take to end by itself once it is asked to.
GRACE_S = 10.0


def end_group(process: subprocess.Popen[str] | subprocess.Popen[bytes], grace_s: float | None = None) -> None:
    """End a process and its whole group: terminate first, then kill. It may have ended already."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S if grace_s is None else grace_s)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
