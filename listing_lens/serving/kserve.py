"""A client of the KServe v2 protocol over HTTP, with tensors as bytes: what is asked of a Triton Inference Server, and no more.

NVIDIA's own client would bring gevent along. The protocol is described in Triton's documentation, with its extensions for
binary tensors, for model repositories and for time limits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import aiohttp
import numpy as np
from numpy.typing import NDArray

from listing_lens.errors import LensError
from listing_lens.serving.limits import Breaker, UnavailableError

_HEADER_LENGTH = "Inference-Header-Content-Length"
# How long the server has to say what it has, and to load a model.
_ASKING_S = 5.0
_LOADING_S = 600.0
_TYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("u1"), "FP32": np.dtype("<f4")}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_AWAY = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)


class RefusedByServerError(LensError):
    """The server answers that it cannot do this, and would answer so again."""


class _AwayError(Exception):
    """The server is at fault, and not the request."""


@dataclass
class KServe:
    """A server for models.

    Attributes:
        url: without a path.
        breaker: refuses requests while the server does not answer.
    """

    url: str
    breaker: Breaker = field(init=False)
    _session: aiohttp.ClientSession | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.url = self.url.rstrip("/")
        self.breaker = Breaker(self.name)

    @property
    def name(self) -> str:
        return f"the model server at {self.url}"

    async def close(self) -> None:
        if self._session:
            await self._session.close()

    async def config(self, model: str) -> dict[str, Any] | None:
        """A model's config; None if no version of it is loaded."""
        try:
            told = json.loads((await self._ask("GET", f"models/{model}/config", _ASKING_S))[1])
        except RefusedByServerError:
            return None
        assert isinstance(told, dict)
        return told

    async def is_ready(self, model: str, version: int) -> bool:
        try:
            await self._ask("GET", f"models/{model}/versions/{version}/ready", _ASKING_S)
        except RefusedByServerError:
            return False
        return True

    async def load(self, model: str) -> None:
        """Have a model loaded as it lies in the server's repository, and wait for it.

        Raises:
            LensError: it cannot be loaded, or the server loads nothing that it is asked for.
            UnavailableError: the server is away.
        """
        await self._ask("POST", f"repository/models/{model}/load", _LOADING_S, json.dumps({}).encode())

    async def infer(
        self,
        model: str,
        version: int,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Sequence[str],
        timeout_s: float,
    ) -> dict[str, NDArray[Any]]:
        """Compute outputs of a model from its inputs. Text comes as an array of str.

        Raises:
            LensError: the server refuses the request, or answers what was not asked.
            UnavailableError: it is away, busy, or too slow.
        """
        header = {
            "inputs": [
                {
                    "name": name,
                    "shape": array.shape,
                    "datatype": _NAMES[array.dtype],
                    "parameters": {"binary_data_size": array.nbytes},
                }
                for name, array in inputs.items()
            ],
            "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in outputs],
            # In microseconds. What is still in the server's queue then, it drops.
            "parameters": {"timeout": math.ceil(timeout_s * 1e6)},
        }
        told = json.dumps(header).encode()
        body = b"".join([told, *(np.ascontiguousarray(array).tobytes() for array in inputs.values())])
        answered, answer = await self._ask(
            "POST",
            f"models/{model}/versions/{version}/infer",
            timeout_s,
            body,
            {_HEADER_LENGTH: str(len(told)), "Content-Type": "application/octet-stream"},
        )
        try:
            arrays = _arrays(answer, int(answered.get(_HEADER_LENGTH, len(answer))))
            return {name: arrays[name] for name in outputs}
        except (ValueError, KeyError, TypeError) as err:
            raise LensError(f"{self.name} answers what is no result of {model} version {version}: {err!r}") from err

    async def _ask(
        self,
        method: str,
        path: str,
        timeout_s: float,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[Mapping[str, str], bytes]:
        """The headers and the body of an answer."""
        if self._session is None:
            # Requests are many, and at most as many as their callers allow.
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            with self.breaker.watch(_AwayError):
                try:
                    async with self._session.request(
                        method, f"{self.url}/v2/{path}", data=body, headers=headers, timeout=timeout
                    ) as response:
                        answer = await response.read()
                        if response.status in _AWAY:
                            raise _AwayError(f"cannot take it now ({_reason(answer)})")
                        if response.status != HTTPStatus.OK:
                            raise RefusedByServerError(f"{self.name} refuses {path}: {_reason(answer)}")
                        return response.headers, answer
                except TimeoutError as err:
                    raise _AwayError(f"did not answer within {timeout_s:g} s") from err
                except aiohttp.ClientError as err:
                    raise _AwayError("cannot be reached") from err
        except _AwayError as err:
            raise UnavailableError(f"{self.name} {err}") from err


def _arrays(answer: bytes, header_length: int) -> dict[str, NDArray[Any]]:
    """The outputs in an answer: a JSON header, and the bytes of each that is sent as such."""
    found: dict[str, NDArray[Any]] = {}
    at = header_length
    for output in json.loads(answer[:header_length])["outputs"]:
        name, shape, datatype = output["name"], output["shape"], output["datatype"]
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            found[name] = np.array(output["data"], _TYPES.get(datatype)).reshape(shape)
            continue
        content = answer[at : at + size]
        at += size
        flat = np.array(_texts(content)) if datatype == "BYTES" else np.frombuffer(content, _TYPES[datatype])
        found[name] = flat.reshape(shape)
    return found


def _texts(content: bytes) -> list[str]:
    """Texts one after the other, each after its length in 4 bytes."""
    texts, at = [], 0
    while at < len(content):
        end = at + 4 + int.from_bytes(content[at : at + 4], "little")
        texts.append(content[at + 4 : end].decode())
        at = end
    return texts


def _reason(answer: bytes) -> str:
    """What the server says of a refusal, on one line."""
    try:
        said = json.loads(answer)["error"]
    except (ValueError, KeyError, TypeError):
        said = answer.decode(errors="replace")
    return " ".join(str(said).split())[:300] or "without a word"
