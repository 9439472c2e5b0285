"""Airflow's four components side by side: when one ends, all are ended. AIRFLOW_HOME holds their configuration.

    AIRFLOW_HOME=FOLDER python -m listing_lens.stack.airflow_components

It is `airflow standalone` without its servers for log files, which listen on every network interface (the API server
reads the files itself here), and with an end to it: standalone leaves its children running when it is terminated.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import FrameType

from listing_lens.stack.database import migrate

_COMPONENTS = (
    ("api-server",),
    ("dag-processor",),
    ("scheduler", "--skip-serve-logs"),
    ("triggerer", "--skip-serve-logs"),
)
DATABASE = "airflow.db"


def main() -> None:
    home = Path(os.environ["AIRFLOW_HOME"])
    signal.signal(signal.SIGTERM, _exit)
    migrate(home / DATABASE, version("apache-airflow-core"), _migrate)
    running = {name: subprocess.Popen(_airflow(name, *options)) for name, *options in _COMPONENTS}
    try:
        while not (ended := [name for name, process in running.items() if process.poll() is not None]):
            time.sleep(0.2)
        code = running[ended[0]].returncode
        sys.exit(f"airflow {ended[0]} ended with code {code}: the others are ended too")
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def _airflow(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "airflow", *arguments]


def _migrate(url: str) -> None:
    environment = {**os.environ, "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": url}
    subprocess.run(_airflow("db", "migrate"), check=True, env=environment)


def _exit(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    main()
