"""Jars are code that is run: only ones whose checksum is right, whatever the cache or a mirror holds."""

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath

import pytest

from listing_lens.errors import LensError
from listing_lens.stack.jars import checksums, ensure_jars, jar_folder

JAR = PurePosixPath("org/example/thing/1.0/thing-1.0.jar")
CONTENT = b"the jar"
WANTED = {JAR: hashlib.sha256(CONTENT).hexdigest()}


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Maven repository, named as a mirror in the settings file of the user's jgo. Yields its copy of the jar."""
    served = tmp_path / "repository" / JAR
    served.parent.mkdir(parents=True)
    served.write_bytes(CONTENT)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(tmp_path / "repository"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = tmp_path / "user" / ".config" / "jgo.conf"
        settings.parent.mkdir(parents=True)
        settings.write_text(f"[repositories]\nmirror = http://127.0.0.1:{server.server_port}\n")
        monkeypatch.setenv("HOME", str(tmp_path / "user"))
        yield served
        server.shutdown()


def test_what_is_missing_is_fetched_once_and_nothing_else_is_left(tmp_path: Path, mirror: Path) -> None:
    fetched: list[int] = []
    for _ in range(2):
        (jar,) = ensure_jars(tmp_path, WANTED, fetched.append)
    assert fetched == [1]
    assert jar.read_bytes() == CONTENT
    assert {file.name for file in jar_folder(tmp_path).iterdir()} <= {"thing-1.0.jar", ".lock"}
    assert [file.name for file in (tmp_path / "user").iterdir()] == [".config"]


def test_an_altered_jar_is_fetched_again(tmp_path: Path, mirror: Path) -> None:
    (jar,) = ensure_jars(tmp_path, WANTED)
    jar.write_bytes(b"something else")
    ensure_jars(tmp_path, WANTED)
    assert jar.read_bytes() == CONTENT


def test_a_repository_that_serves_something_else_is_refused(tmp_path: Path, mirror: Path) -> None:
    mirror.write_bytes(b"something else")
    with pytest.raises(LensError, match=r"thing-1\.0\.jar as fetched does not match its checksum"):
        ensure_jars(tmp_path, WANTED)
    assert not list(jar_folder(tmp_path).glob("*.jar"))


def test_an_unreachable_repository_is_a_sentence(tmp_path: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "user" / ".config" / "jgo.conf"
    settings.write_text("[repositories]\nmirror = http://127.0.0.1:1\n")
    with pytest.raises(LensError, match=r"cannot fetch thing-1\.0\.jar"):
        ensure_jars(tmp_path, WANTED)


def test_the_committed_checksums_name_each_jar_once() -> None:
    committed = checksums()
    names = [path.name for path in committed]
    assert "elasticsearch-9.2.2.jar" in names
    assert "transport-netty4-9.2.2.jar" in names
    assert len(names) == len(set(names))
    assert all(len(bytes.fromhex(digest)) == 32 for digest in committed.values())
