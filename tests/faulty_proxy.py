"""A small HTTP proxy in front of a real Elasticsearch node, which fails as told: for tests of what a load survives.

    with FaultyProxy(elasticsearch_url) as proxy:
        proxy.add(answer(503), path="/_bulk$", times=2)                    # the first two bulk requests are not passed on
        proxy.add(drop(applied=True), path="/_bulk$", skip=1, times=1)     # then one is, but its answer gets lost
        proxy.add(refuse_items(429, {"a", "b"}), times=3)                  # these items are left out, and answered 429
        proxy.add(hold(event))                                             # whatever else waits for the event
        client = Elasticsearch(proxy.url)

A fault is a callable that takes an `Exchange` and gives the `Response` for the client; it may ask the node by
`exchange.forward()`, once, twice or not at all, and may raise `Dropped` to close the connection without an answer. Of the
rules that fit a request, the first one that is not used up is applied; a request that no rule fits is passed on.

`proxy.go_away()` refuses connections, and breaks those that are open; `proxy.come_back()` listens at the same address again.
What came in is in `proxy.requests`, in order.

Nothing here sleeps. A fault that is to pass with time is ended by the test, most easily from the clock's replaced `sleep`.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_OF_A_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "accept-encoding"}


class Dropped(Exception):
    """Raised by a fault: the connection is closed, without an answer."""


@dataclass(frozen=True)
class Request:
    """What a client asked for."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def actions(self) -> list[tuple[dict[str, Any], bytes]]:
        """The items of a bulk request whose actions are all "index": the action's fields, and the item's two lines."""
        lines = self.body.splitlines(keepends=True)
        return [(json.loads(a)["index"], a + source) for a, source in zip(lines[::2], lines[1::2], strict=True)]


@dataclass(frozen=True)
class Response:
    """What the client gets."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @classmethod
    def of(cls, status: int, body: Any) -> Response:
        """An answer as Elasticsearch would give it."""
        headers = {"Content-Type": "application/vnd.elasticsearch+json;compatible-with=9"}
        return cls(status, json.dumps(body).encode(), headers | {"X-Elastic-Product": "Elasticsearch"})


@dataclass(frozen=True)
class Exchange:
    """A request, and the way to the node."""

    request: Request
    _ask: Callable[[Request], Response]

    def forward(self, request: Request | None = None) -> Response:
        """The node's answer to the request, or to another one in its place."""
        return self._ask(request or self.request)


Fault = Callable[[Exchange], Response]


# ---- faults ----------------------------------------------------------------------------------------------------------


def answer(status: int, body: Any = None) -> Fault:
    """Answer without asking the node."""
    error = {"error": {"type": "of_the_proxy", "reason": "the proxy says so"}, "status": status}
    return lambda exchange: Response.of(status, error if body is None else body)


def drop(*, applied: bool) -> Fault:
    """Close the connection without an answer; if `applied`, after the node has carried the request out."""

    def fault(exchange: Exchange) -> Response:
        if applied:
            exchange.forward()
        raise Dropped

    return fault


def hold(until: threading.Event) -> Fault:
    """Pass the request on once an event is set: as late as the test wants it."""

    def fault(exchange: Exchange) -> Response:
        until.wait()
        return exchange.forward()

    return fault


def refuse_items(
    status: int,
    chosen: Collection[str] | Callable[[dict[str, Any]], bool],
    *,
    type: str = "of_the_proxy",
    reason: str = "the proxy says so",
) -> Fault:
    """Answer some items of a bulk request with a status, and pass on the others.

    Args:
        chosen: ids, or a function of an action's fields ("_id", "version", …).
    """
    is_chosen = chosen if callable(chosen) else lambda action: action["_id"] in chosen

    def fault(exchange: Exchange) -> Response:
        actions = exchange.request.actions
        left_out = [is_chosen(action) for action, _ in actions]
        body = b"".join(lines for (_, lines), out in zip(actions, left_out, strict=True) if not out)
        passed: Iterator[Any] = iter(())
        if body:
            response = exchange.forward(replace(exchange.request, body=body))
            if response.status != 200:
                return response
            passed = iter(json.loads(response.body)["items"])
        refused = {"index": {"status": status, "error": {"type": type, "reason": reason}}}
        return Response.of(200, {"errors": True, "items": [refused if out else next(passed) for out in left_out]})

    return fault


# ---- the proxy -------------------------------------------------------------------------------------------------------


@dataclass
class _Rule:
    fault: Fault
    path: re.Pattern[str]
    method: str | None
    skip: int
    times: int | None

    def takes(self, request: Request) -> bool:
        """Whether this request is the rule's, which counts it."""
        if not self.path.search(request.path) or self.method not in (None, request.method):
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times is not None:
            if not self.times:
                return False
            self.times -= 1
        return True


@dataclass
class FaultyProxy:
    """The proxy in front of a node; it listens until the end of its `with` block."""

    node_url: str
    requests: list[Request] = field(default_factory=list)
    _rules: list[_Rule] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _open: set[socket.socket] = field(default_factory=set)
    _server: ThreadingHTTPServer | None = None
    _port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> FaultyProxy:
        self.come_back()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_away()

    def add(
        self, fault: Fault, *, path: str = "", method: str | None = None, skip: int = 0, times: int | None = None
    ) -> None:
        """Apply a fault to some requests.

        Args:
            path: a regular expression, found anywhere in the path without its query.
            skip: pass over so many of the requests that fit.
            times: apply it so many times; None means for ever.
        """
        with self._lock:
            self._rules.append(_Rule(fault, re.compile(path), method, skip, times))

    def clear(self) -> None:
        """Forget the faults and the requests so far."""
        with self._lock:
            self._rules.clear()
            self.requests.clear()

    def go_away(self) -> None:
        """Refuse connections, and break those that are open; nothing to do when it is away already."""
        with self._lock:
            if self._server is None:
                return
            self._server.shutdown()
            self._server.server_close()
            self._server = None
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def come_back(self) -> None:
        """Listen, from the second time on at the same address; nothing to do when it is there already."""
        with self._lock:
            if self._server is not None:
                return
            self._server = _Server(("127.0.0.1", self._port), _Handler)
            self._server.proxy = self  # type: ignore[attr-defined]
            self._port = self._server.server_port
            threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def _fault_of(self, request: Request) -> Fault | None:
        with self._lock:
            self.requests.append(request)
            return next((rule.fault for rule in self._rules if rule.takes(request)), None)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    """One client's connection, with one to the node."""

    protocol_version = "HTTP/1.1"
    # Headers and body leave in one packet, at once.
    wbufsize = -1
    disable_nagle_algorithm = True

    @property
    def _proxy(self) -> FaultyProxy:
        found: FaultyProxy = self.server.proxy  # type: ignore[attr-defined]
        return found

    @cached_property
    def _node(self) -> HTTPConnection:
        return HTTPConnection(urlsplit(self._proxy.node_url).netloc)

    def setup(self) -> None:
        super().setup()
        with self._proxy._lock:
            self._proxy._open.add(self.connection)

    def finish(self) -> None:
        with self._proxy._lock:
            self._proxy._open.discard(self.connection)
        self._node.close()
        with suppress(OSError):
            super().finish()

    def handle(self) -> None:
        # A client may break its connection, as the proxy does.
        with suppress(OSError):
            super().handle()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(self.command, self.path, dict(self.headers), body)
        fault = self._proxy._fault_of(request)
        exchange = Exchange(request, self._ask)
        try:
            response = fault(exchange) if fault else exchange.forward()
        except Dropped:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._give(response)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _ask(self, request: Request) -> Response:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _OF_A_CONNECTION}
        try:
            self._node.request(request.method, request.target, request.body or None, headers)
            answered = self._node.getresponse()
            return Response(answered.status, answered.read(), dict(answered.headers))
        except (OSError, HTTPException) as err:
            self._node.close()
            return Response.of(502, {"error": {"type": "no_node", "reason": str(err)}, "status": 502})

    def _give(self, response: Response) -> None:
        self.send_response_only(response.status)
        for name, value in response.headers.items():
            if name.lower() not in _OF_A_CONNECTION:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)
        self.wfile.flush()

    def log_message(self, *about: object) -> None:
        """Nothing: a test says what is wrong."""
