"""A server that speaks as much of Cloud Storage's two APIs as tables and leases use, conditions on generations included.

The emulator that other tests use ignores conditions; and conditions are what a commit on Cloud Storage relies on.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@dataclass
class Storage:
    """Objects by bucket and name, and the requests that wrote them, with the generation that each was on condition of."""

    address: str
    objects: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    writes: list[tuple[str, int | None]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    last: int = 1000

    def write(self, path: str, data: bytes, generation: int | None) -> int | None:
        """The object's new generation; None when it was to be of another one than it is."""
        with self.lock:
            held = self.objects.get(path, (b"", 0))[1]
            if generation is not None and held != generation:
                return None
            self.last += 1
            self.objects[path] = (data, self.last)
            self.writes.append((path, generation))
            return self.last


@contextmanager
def conditional_storage() -> Iterator[Storage]:
    """The server, up until the end of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    storage = Storage(f"http://127.0.0.1:{server.server_port}")
    server.storage = storage  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield storage
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def _storage(self) -> Storage:
        found: Storage = self.server.storage  # type: ignore[attr-defined]
        return found

    def _route(self) -> tuple[str, dict[str, str]]:
        parts = urlsplit(self.path)
        return parts.path, {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}

    def _object(self, path: str) -> str:
        """bucket/name, of either API's path."""
        found = re.fullmatch(r"(?:/upload)?/storage/v1/b/([^/]+)/o(?:/(.+))?", path)
        return f"{found[1]}/{unquote(found[2] or '')}" if found else unquote(path.removeprefix("/"))

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _described(self, path: str) -> bytes:
        data, generation = self._storage.objects[path]
        bucket, _, name = path.partition("/")
        about = {"bucket": bucket, "name": name, "generation": str(generation), "size": str(len(data))}
        return json.dumps(about).encode()

    def do_GET(self) -> None:
        path, query = self._route()
        if "list-type" in query:
            return self._list(path.strip("/"), query)
        name = self._object(path)
        if name not in self._storage.objects:
            return self._answer(404)
        if path.startswith("/storage/") and query.get("alt") != "media":
            return self._answer(200, self._described(name), Content_Type="application/json")
        data, generation = self._storage.objects[name]
        about = {"ETag": f'"{generation}"', "Last_Modified": "Sat, 31 Jan 2026 12:00:00 GMT"}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self._answer(200, data, **about)
        start = int(wanted[1]) if wanted[1] else len(data) - int(wanted[2])
        end = min(len(data), int(wanted[2]) + 1) if wanted[1] and wanted[2] else len(data)
        return self._answer(206, data[start:end], Content_Range=f"bytes {start}-{end - 1}/{len(data)}", **about)

    do_HEAD = do_GET

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        names = sorted(path.partition("/")[2] for path in self._storage.objects if path.startswith(f"{bucket}/"))
        names = [name for name in names if name.startswith(prefix) and name > query.get("start-after", "")]
        folders = set()
        if delimiter:
            folders = {prefix + n[len(prefix) :].split("/")[0] + "/" for n in names if "/" in n[len(prefix) :]}
            names = [name for name in names if delimiter not in name[len(prefix) :]]
        moment = datetime(2026, 1, 31, 12, tzinfo=UTC).isoformat()
        contents = "".join(
            f"<Contents><Key>{escape(name)}</Key><LastModified>{moment}</LastModified>"
            f'<Size>{len(self._storage.objects[f"{bucket}/{name}"][0])}</Size><ETag>"{name}"</ETag></Contents>'
            for name in names
        )
        common = "".join(f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in sorted(folders))
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{contents}{common}</ListBucketResult>"
        self._answer(200, body.encode(), Content_Type="application/xml")

    def do_PUT(self) -> None:
        path, _ = self._route()
        data = self.rfile.read(int(self.headers["Content-Length"]))
        asked = self.headers.get("x-goog-if-generation-match")
        source = self.headers.get("x-goog-copy-source")
        if source:
            data = self._storage.objects[unquote(source).removeprefix("/")][0]
        generation = self._storage.write(self._object(path), data, int(asked) if asked else None)
        if generation is None:
            return self._answer(412)
        return self._answer(200, ETag=f'"{generation}"')

    def do_POST(self) -> None:
        path, query = self._route()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        kind = self.headers["Content-Type"]
        about, content = message_from_bytes(f"Content-Type: {kind}\n\n".encode() + body).get_payload()  # type: ignore[misc]
        name = self._object(path) + json.loads(about.get_payload())["name"]  # type: ignore[union-attr]
        asked = query.get("ifGenerationMatch")
        data = content.get_payload(decode=True)  # type: ignore[union-attr]
        if self._storage.write(name, bytes(data), int(asked) if asked else None) is None:
            return self._answer(412, b"{}")
        return self._answer(200, self._described(name), Content_Type="application/json")

    def do_DELETE(self) -> None:
        path, _ = self._route()
        gone = self._storage.objects.pop(self._object(path), None)
        self._answer(204 if gone else 404)

    def log_message(self, *about: object) -> None:
        """Nothing: a test says what is wrong."""
