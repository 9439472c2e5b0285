"""Servers for models, for tests: Triton itself where it is installed, and one that speaks as much of its protocol as is asked.

Both take a model repository as `lens triton export` writes it, load models when they are told to, and compute with ONNX
Runtime. The Triton that a Python package carries (nvidia-pytriton) has no backend for ONNX but one for Python, so its models
are a few lines that call ONNX Runtime; all else is real: the config, versions, batching, queues, the protocol. It runs on
Debian's Python 3.11 and no other:

    uv venv --python /usr/bin/python3.11 .pytriton
    uv pip install --python .pytriton/bin/python nvidia-pytriton==0.7.0 onnxruntime
    TRITON_PYTHON=.pytriton/bin/python pytest tests/listing_lens/serving/test_triton.py
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np
import onnxruntime
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

HEADER_LENGTH = "Inference-Header-Content-Length"
_PATH = re.compile(r"/v2/models/(?P<model>[\w-]+)(/versions/(?P<version>\d+))?/(?P<what>config|ready|infer)")
_LOAD = re.compile(r"/v2/repository/models/(?P<model>[\w-]+)/load")
_TYPES = {"UINT8": np.uint8, "FP32": np.float32}
_NAMES = {np.dtype(np.float32): "FP32", np.dtype(object): "BYTES"}

Answer = tuple[int, dict[str, str], bytes]


class ModelServer(Protocol):
    """A server. When it starts, nothing is loaded."""

    url: str

    def take(self, repository: Path) -> None:
        """Have another model repository in place of its own; what is loaded stays loaded."""
        ...

    def start(self) -> None: ...

    def stop(self) -> None: ...


class SmallServer:
    """Answers from ONNX Runtime, as Triton would.

    Attributes:
        fault: called instead, if set, with the path that is asked; what it gives is the answer, unless that is None.
        asked: the paths that were asked, in order.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fault: Callable[[str], Answer | None] | None = None
        self.asked: list[str] = []
        self._connections: set[socket.socket] = set()
        self._loaded: dict[str, tuple[dict[str, Any], dict[int, onnxruntime.InferenceSession]]] = {}
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                owner._connections.add(self.connection)

            def finish(self) -> None:
                owner._connections.discard(self.connection)
                super().finish()

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, headers, content = owner.answer(self.path, self.headers.get(HEADER_LENGTH), body)
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(content))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_GET

            def log_message(self, *_arguments: object) -> None:
                pass

        self._handler, self._port = Handler, 0
        self.start()
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._loaded.clear()
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler)
        self._server.daemon_threads = True
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, repository: Path) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(repository, self.folder)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def answer(self, path: str, header_length: str | None, body: bytes) -> Answer:
        self.asked.append(path)
        faulty = self.fault(path) if self.fault else None
        if faulty is not None:
            return faulty
        if load := _LOAD.fullmatch(path):
            return self._load(load["model"])
        found = _PATH.fullmatch(path)
        assert found, path
        if found["model"] not in self._loaded:
            return _error(HTTPStatus.NOT_FOUND, f"Request for unknown model: '{found['model']}' is not found")
        config, sessions = self._loaded[found["model"]]
        if found["what"] == "config":
            return HTTPStatus.OK, {}, json.dumps(config).encode()
        session = sessions.get(int(found["version"]))
        if found["what"] == "ready":
            return (HTTPStatus.OK, {}, b"") if session else _error(HTTPStatus.BAD_REQUEST, "Model version not ready")
        if session is None:
            return _error(HTTPStatus.NOT_FOUND, f"Request for unknown model: version {found['version']} is not found")
        assert header_length is not None
        return _infer(session, json.loads(body[: int(header_length)]), body[int(header_length) :])

    def _load(self, model: str) -> Answer:
        config = model_config_pb2.ModelConfig()
        try:
            text_format.Parse((self.folder / model / "config.pbtxt").read_text(), config)
        except FileNotFoundError:
            return _error(HTTPStatus.BAD_REQUEST, f"failed to load '{model}', failed to poll from model repository")
        sessions = {
            int(path.parent.name): onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            for path in (self.folder / model).glob("*/model.onnx")
        }
        told = json_format.MessageToDict(config, preserving_proto_field_name=True)
        self._loaded[model] = told, sessions
        return HTTPStatus.OK, {}, b""


def _infer(session: onnxruntime.InferenceSession, header: dict[str, Any], content: bytes) -> Answer:
    inputs, at = {}, 0
    for tensor in header["inputs"]:
        size = tensor["parameters"]["binary_data_size"]
        inputs[tensor["name"]] = np.frombuffer(content[at : at + size], _TYPES[tensor["datatype"]]).reshape(
            tensor["shape"]
        )
        at += size
    names = [output["name"] for output in header["outputs"]]
    try:
        arrays = session.run(names, inputs)
    except Exception as err:  # noqa: BLE001
        return _error(HTTPStatus.INTERNAL_SERVER_ERROR, str(err))
    return result(dict(zip(names, map(np.asarray, arrays), strict=True)))


def result(outputs: dict[str, np.ndarray]) -> Answer:
    """The answer that tells outputs."""
    told, contents = [], []
    for name, array in outputs.items():
        content = _bytes(array)
        contents.append(content)
        told.append(
            {
                "name": name,
                "datatype": _NAMES[array.dtype],
                "shape": array.shape,
                "parameters": {"binary_data_size": len(content)},
            }
        )
    header = json.dumps({"outputs": told}).encode()
    return HTTPStatus.OK, {HEADER_LENGTH: str(len(header))}, b"".join([header, *contents])


def _bytes(array: np.ndarray) -> bytes:
    if array.dtype != object:
        return array.tobytes()
    texts = [str(text).encode() for text in array.flat]
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def _error(status: int, reason: str) -> Answer:
    return status, {}, json.dumps({"error": reason}).encode()


_PYTHON_MODEL = """
import os
import numpy as np
import onnxruntime
import triton_python_backend_utils as triton

class TritonPythonModel:
    def initialize(self, args):
        file = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        pixels = [triton.get_input_tensor_by_name(request, "pixels").as_numpy() for request in requests]
        vectors, spaces = self.session.run(["embedding", "space"], {"pixels": np.concatenate(pixels)})
        answers, at = [], 0
        for some in pixels:
            mine = slice(at, at + len(some))
            tensors = [triton.Tensor("embedding", vectors[mine]), triton.Tensor("space", np.array(spaces[mine], object))]
            answers.append(triton.InferenceResponse(tensors))
            at += len(some)
        return answers
"""


class RealTriton:
    """The Triton Inference Server of nvidia-pytriton, whose environment `python` is of."""

    def __init__(self, folder: Path, python: Path) -> None:
        environment = python.parent.parent
        [package] = environment.glob("lib/python3.11/site-packages/pytriton/tritonserver")
        libraries = package.parent.parent / "nvidia_pytriton.libs"
        backends = shutil.copytree(package / "backends", folder / "backends")
        shutil.copy(package / "python_backend_stubs/3.11/triton_python_backend_stub", backends / "python")
        self.repository = folder / "models"
        self.repository.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._command = [
            str(package / "bin/tritonserver"),
            f"--model-repository={self.repository}",
            f"--backend-directory={backends}",
            "--model-control-mode=explicit",
            # Open connections would keep it.
            "--exit-timeout-secs=1",
            "--http-address=127.0.0.1",
            f"--http-port={port}",
            "--allow-grpc=false",
            "--allow-metrics=false",
        ]
        path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
        self._environ = os.environ | {"LD_LIBRARY_PATH": str(libraries), "PATH": path}
        self._log = folder / "log"
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, env=self._environ, stdout=log, stderr=subprocess.STDOUT)
        while not self._is_ready():
            assert self._process.poll() is None, self._log.read_text()
            time.sleep(0.1)

    def take(self, repository: Path) -> None:
        for model in repository.iterdir():
            shutil.rmtree(self.repository / model.name, ignore_errors=True)
            copied = shutil.copytree(model, self.repository / model.name)
            config = copied / "config.pbtxt"
            config.write_text(config.read_text().replace('backend: "onnxruntime"', 'backend: "python"'))
            for graph in copied.glob("*/model.onnx"):
                graph.with_name("model.py").write_text(_PYTHON_MODEL)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/v2/health/ready").status_code == HTTPStatus.OK
        except httpx.TransportError:
            return False
