"""Prism, Beam's portable runner, and workers in a process of their own: what a pipeline needs there, it needs anywhere."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import apache_beam
import pytest
from filelock import FileLock

from listing_lens.process_group import end_group
from listing_lens.stack.ports import choose_port

_MODULE = "github.com/apache/beam/sdks/v2/go/cmd/prism"
# Workers are threads of this process, so that what they import is imported once for all jobs.
_POOL = """
import sys, threading
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer
address, server = BeamFnExternalWorkerPoolServicer.start(port=int(sys.argv[1]))
threading.Event().wait()
"""


def prism_program(cache: Path) -> Path:
    """Prism of Beam's own version, built once into the cache; skips the test where there is neither it nor Go."""
    program = cache / f"prism-{apache_beam.__version__}" / "prism"
    if not program.exists() and not shutil.which("go"):
        pytest.skip(f"Prism is not at {program}, and there is no Go to build it with")
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "prism.lock"):
        if not program.exists():
            with tempfile.TemporaryDirectory(dir=cache, prefix="prism-part-") as part:
                command = ["go", "install", f"{_MODULE}@v{apache_beam.__version__}"]
                built = subprocess.run(
                    command, env={**os.environ, "GOBIN": part}, check=False, capture_output=True, text=True
                )
                assert built.returncode == 0, built.stderr
                program.parent.mkdir(exist_ok=True)
                Path(part, "prism").rename(program)
    return program


@contextmanager
def running_prism(program: Path, folder: Path) -> Iterator[list[str]]:
    """Start Prism and a worker pool, which end with the block; gives the options that send a job there.

    Neither has a `LENS_…` variable: a worker knows what the job brings along, as on another machine.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LENS_")}
    # Among those that the system gives to nobody by itself.
    quiet = random.sample(range(20_000, 32_000), 18)
    prism_port, pool_port = choose_port(quiet[:9]), choose_port(quiet[9:])
    programs = {
        prism_port: [program, f"--job_port={prism_port}", "--serve_http=false"],
        pool_port: [sys.executable, "-c", _POOL, str(pool_port)],
    }
    with ExitStack() as running:
        for port, command in programs.items():
            running.enter_context(_serving(command, port, environment, folder / f"{port}.log"))
        yield [
            "--runner=PortableRunner",
            f"--job_endpoint=127.0.0.1:{prism_port}",
            "--environment_type=EXTERNAL",
            f"--environment_config=127.0.0.1:{pool_port}",
        ]


@contextmanager
def _serving(command: Sequence[str | Path], port: int, environment: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        while not _answers(port):
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield
    finally:
        end_group(process, 2)


def _answers(port: int) -> bool:
    # Prism listens on one of the addresses of localhost.
    try:
        with socket.create_connection(("localhost", port), timeout=1):
            return True
    except OSError:
        return False
