"""The MLflow server on SQLite, which keeps the artefacts too, so that clients need no access to its folder.

python -m listing_lens.stack.mlflow_server --home FOLDER --port PORT
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from listing_lens.stack.database import address, migrate

# One process answers some hundred requests a second, and a second one costs 300 MB.
_WORKERS = 1


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True, help="folder of the database and the artefacts")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args(arguments)
    home = options.home.resolve()
    mlflow = [sys.executable, "-m", "mlflow"]
    # Before any worker starts: several that create the tables at once would conflict.
    migrate(home / "mlflow.db", version("mlflow"), lambda url: _run([*mlflow, "db", "upgrade", url]))
    command = [*mlflow, "server", "--host", "127.0.0.1", "--port", str(options.port), "--workers", str(_WORKERS)]
    command += ["--backend-store-uri", address(home / "mlflow.db")]
    command += ["--artifacts-destination", str(home / "artifacts")]
    # Replaces this process, so that the process that was started is the server.
    os.execv(sys.executable, command)  # noqa: S606


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
