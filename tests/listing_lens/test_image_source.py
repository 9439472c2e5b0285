"""Reading images from addresses that strangers wrote: nothing but what is allowed is read, nothing hangs, nothing crashes.

An address is hostile until proven otherwise, and any exception but `ImageError` would fail a whole batch. The web server
and the Cloud Storage are real ones on this machine.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from google.cloud.storage import Bucket

from listing_lens.image_source import ImageSource, resolve_uri
from models.images import ImageError, ImageLimits

LIMITS = ImageLimits(max_bytes=1000, max_pixels=1000)
PHOTO = b"the bytes of a photo"


def source(*allowed: str, timeout_s: float = 5.0) -> ImageSource:
    return ImageSource(allowed, LIMITS, timeout_s)


@pytest.fixture(autouse=True)
def no_waiting_between_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _seconds: None)


class PhotoServer(ThreadingHTTPServer):
    """Answers by what the path begins with, and counts what it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.asked: Counter[str] = Counter()
        # Set when the test is over, so that no answer goes on for longer.
        self.over = threading.Event()
        self.elsewhere = ""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(BaseHTTPRequestHandler):
    server: PhotoServer

    def do_GET(self) -> None:
        self.server.asked[self.path] += 1
        name, _, argument = self.path.removeprefix("/photos/").partition("/")
        answer = getattr(self, f"_{name}", None)
        if answer:
            answer(argument)
        else:
            self._send(404, b"<title>not here</title>")

    def log_message(self, *_: object) -> None:
        pass

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _ok(self, _: str) -> None:
        self._send(200, PHOTO)

    def _status(self, status: str) -> None:
        self._send(int(status))

    def _busy(self, failures: str) -> None:
        """Fails that many times first."""
        if self.server.asked[self.path] <= int(failures):
            self._send(503)
        else:
            self._send(200, PHOTO)

    def _to(self, target: str) -> None:
        self._send(302, Location=f"/photos/{target}")

    def _away(self, target: str) -> None:
        self._send(302, Location=f"{self.server.elsewhere}/photos/{target}")

    def _nowhere(self, _: str) -> None:
        self._send(302)

    def _mad(self, _: str) -> None:
        self._send(302, Location="http://[mad/")

    def _round(self, _: str) -> None:
        self._send(302, Location=self.path)

    def _large(self, size: str) -> None:
        self._send(200, bytes(int(size)))

    def _endless(self, _: str) -> None:
        self._drip(0.0, bytes(64))

    def _stall(self, _: str) -> None:
        self._drip(60.0, b"x")

    def _slow(self, _: str) -> None:
        self._drip(0.05, b"x")

    def _cut(self, _: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "500")
        self.end_headers()
        self.wfile.write(PHOTO)

    def _drip(self, pause_s: float, piece: bytes) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while not self.server.over.is_set():
                self.wfile.write(piece)
                self.server.over.wait(pause_s)
        except OSError:
            # The client has had enough.
            pass


def serve() -> Iterator[PhotoServer]:
    server = PhotoServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


web = pytest.fixture(serve, name="web")
another = pytest.fixture(serve, name="another")


class TestWeb:
    def test_reads_what_is_there(self, web: PhotoServer) -> None:
        assert source(f"{web.address}/photos/").read(f"{web.address}/photos/ok") == PHOTO

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 204, 304])
    def test_a_refusal_is_final(self, web: PhotoServer, status: int) -> None:
        with pytest.raises(ImageError, match=f"the server answered {status}$"):
            source(web.address).read(f"{web.address}/photos/status/{status}")
        assert web.asked.total() == 1

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_a_fault_is_tried_again_three_times_in_all(self, web: PhotoServer, status: int) -> None:
        with pytest.raises(ImageError, match=f"the server answered {status}, 3 times"):
            source(web.address).read(f"{web.address}/photos/status/{status}")
        assert web.asked.total() == 3

    def test_a_fault_that_passes_does_no_harm(self, web: PhotoServer) -> None:
        assert source(web.address).read(f"{web.address}/photos/busy/2") == PHOTO

    def test_an_answer_that_breaks_off_is_tried_again(self, web: PhotoServer) -> None:
        with pytest.raises(ImageError, match="cannot be fetched: RemoteProtocolError, 3 times"):
            source(web.address).read(f"{web.address}/photos/cut")

    def test_a_server_that_is_gone_is_one_bad_image(self) -> None:
        with pytest.raises(ImageError, match="cannot be fetched: ConnectError, 3 times"):
            source("http://127.0.0.1:9/").read("http://127.0.0.1:9/a.jpg")

    def test_follows_a_redirect_to_where_it_may_read(self, web: PhotoServer, another: PhotoServer) -> None:
        web.elsewhere = another.address
        reader = source(web.address, another.address)
        assert reader.read(f"{web.address}/photos/to/ok") == PHOTO
        assert reader.read(f"{web.address}/photos/away/ok") == PHOTO

    def test_follows_no_redirect_to_where_it_may_not(self, web: PhotoServer, another: PhotoServer) -> None:
        web.elsewhere = another.address
        with pytest.raises(ImageError, match="is not among LENS_IMAGE_SOURCES"):
            source(web.address).read(f"{web.address}/photos/away/ok")
        assert not another.asked

    @pytest.mark.parametrize(
        ("path", "reason"),
        [
            ("round", "more than 3 redirects"),
            ("nowhere", "the server answered 302"),
            ("mad", "not an address"),
        ],
    )
    def test_a_redirect_that_leads_nowhere_is_one_bad_image(self, web: PhotoServer, path: str, reason: str) -> None:
        with pytest.raises(ImageError, match=reason):
            source(web.address).read(f"{web.address}/photos/{path}")

    def test_an_image_of_the_largest_size_is_read(self, web: PhotoServer) -> None:
        assert len(source(web.address).read(f"{web.address}/photos/large/1000")) == 1000

    @pytest.mark.parametrize("path", ["large/1001", "large/50000000", "endless"])
    def test_a_larger_one_is_left_before_its_end(self, web: PhotoServer, path: str) -> None:
        with pytest.raises(ImageError, match="more than the limit of 1,000 bytes"):
            source(web.address).read(f"{web.address}/photos/{path}")

    def test_a_server_that_falls_silent_is_left(self, web: PhotoServer) -> None:
        with pytest.raises(ImageError, match="cannot be fetched: ReadTimeout, 3 times"):
            source(web.address, timeout_s=0.1).read(f"{web.address}/photos/stall")

    def test_a_server_that_drips_is_left_too(self, web: PhotoServer) -> None:
        began = time.monotonic()
        with pytest.raises(ImageError, match=r"not complete after 1\.2 s"):
            source(web.address, timeout_s=0.2).read(f"{web.address}/photos/slow")
        assert time.monotonic() - began < 10


class TestAllowed:
    @pytest.mark.parametrize(
        "uri",
        [
            "https://img.example.com.evil.org/photos/a.jpg",
            "https://img.example.com@evil.org/photos/a.jpg",
            "https://img.example.com:443@evil.org/photos/a.jpg",
            "https://user@img.example.com/photos/a.jpg",
            "https://img.example.com:8443/photos/a.jpg",
            "http://img.example.com/photos/a.jpg",
            "https://evil.org/https://img.example.com/photos/a.jpg",
            "https://img.example.com\\@evil.org/photos/a.jpg",
            "https://img.example.com/private/a.jpg",
            "https://img.example.com/photos-private/a.jpg",
            "https://img.example.com/photos/../private/a.jpg",
            "https://img.example.com/photos/%2e%2e/private/a.jpg",
            "https://img.example.com/photos/..%2fprivate/a.jpg",
            "https://img.example.com/photos/..\\private/a.jpg",
            "http://169.254.169.254/computeMetadata/v1/",
            "gs://bucket-other/photos/a.jpg",
            "gs://bucket/photos-private/a.jpg",
            "gs://bucket/a.jpg",
            "file:///etc/passwd",
            "/etc/passwd",
            "/data/photos/../private/a.jpg",
            "/data/photos-private/a.jpg",
            "file:///data/photos/../../etc/passwd",
        ],
    )
    def test_an_address_outside_is_not_read(self, uri: str) -> None:
        reader = source("https://img.example.com/photos", "gs://bucket/photos/", "/data/photos")
        with pytest.raises(ImageError, match=r"LENS_IMAGE_SOURCES( allows)?$"):
            reader.read(uri)

    @pytest.mark.parametrize(
        "uri",
        [
            "https://[mad/a.jpg",
            "https://img.example.com\uff0f.evil.org/a.jpg",
            "https://img.example.com/\x01.jpg",
            "gs://[mad/a.jpg",
            "ftp://img.example.com/a.jpg",
            "data://text/plain,hello",
            "://",
            "/data/photos/a\0.jpg",
            "/data/photos/" + "x" * 5000,
        ],
        ids=[
            "no host",
            "a slash of another script",
            "a control character",
            "no bucket",
            "ftp",
            "data",
            "no scheme",
            "a zero",
            "too long",
        ],
    )
    def test_an_address_that_is_none_is_one_bad_image(self, uri: str) -> None:
        with pytest.raises(ImageError):
            source("https://img.example.com/", "gs://[mad/", "/data/photos").read(uri)

    def test_nothing_is_allowed_by_default(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").write_bytes(PHOTO)
        with pytest.raises(ImageError, match="LENS_IMAGE_SOURCES"):
            source().read(str(tmp_path / "a.jpg"))
        assert source().allowing([str(tmp_path)]).read(str(tmp_path / "a.jpg")) == PHOTO


class TestFolder:
    @pytest.fixture
    def photos(self, tmp_path: Path) -> Path:
        (tmp_path / "photos" / "2026").mkdir(parents=True)
        (tmp_path / "photos" / "2026" / "a#1?.jpg").write_bytes(PHOTO)
        (tmp_path / "secret").write_bytes(b"a secret")
        return tmp_path / "photos"

    @pytest.mark.parametrize("scheme", ["", "file://"], ids=["path", "file://"])
    def test_reads_what_is_there(self, photos: Path, scheme: str) -> None:
        assert source(f"{scheme}{photos}").read(f"{scheme}{photos}/2026/a#1?.jpg") == PHOTO
        assert source(f"{photos}/").read(f"{photos}/2026/../2026/a#1?.jpg") == PHOTO

    def test_a_link_within_is_followed_and_one_that_leaves_is_not(self, photos: Path) -> None:
        (photos / "inside.jpg").symlink_to(photos / "2026" / "a#1?.jpg")
        (photos / "outside.jpg").symlink_to(photos.parent / "secret")
        (photos / "folder").symlink_to(photos.parent)
        assert source(str(photos)).read(f"{photos}/inside.jpg") == PHOTO
        for name in ("outside.jpg", "folder/secret"):
            with pytest.raises(ImageError, match="outside the folders"):
                source(str(photos)).read(f"{photos}/{name}")

    def test_what_is_no_file_is_one_bad_image(self, photos: Path) -> None:
        (photos / "loop.jpg").symlink_to(photos / "loop.jpg")
        os.mkfifo(photos / "pipe.jpg")
        for name in ("gone.jpg", "2026", "2026/a#1?.jpg/b.jpg", "loop.jpg", "pipe.jpg"):
            with pytest.raises(ImageError, match="no such file"):
                source(str(photos)).read(f"{photos}/{name}")

    def test_no_more_is_read_than_shows_that_it_is_too_much(self, photos: Path) -> None:
        (photos / "large.jpg").write_bytes(bytes(5000))
        assert len(source(str(photos)).read(f"{photos}/large.jpg")) == LIMITS.max_bytes + 1


class TestBucket:
    def test_reads_what_is_there_under_any_name(self, bucket: Bucket) -> None:
        for name in ("photos/a.jpg", "photos/a b#1?v=2.jpg", "photos/écran.jpg"):
            bucket.blob(name).upload_from_string(PHOTO)
            assert source(f"gs://{bucket.name}/photos/").read(f"gs://{bucket.name}/{name}") == PHOTO

    def test_no_more_is_read_than_shows_that_it_is_too_much(self, bucket: Bucket) -> None:
        bucket.blob("large.jpg").upload_from_string(bytes(5000))
        assert len(source(f"gs://{bucket.name}").read(f"gs://{bucket.name}/large.jpg")) == LIMITS.max_bytes + 1

    @pytest.mark.parametrize("name", ["gone.jpg", "", "folder/"])
    def test_what_is_not_there_is_one_bad_image(self, bucket: Bucket, name: str) -> None:
        with pytest.raises(ImageError):
            source(f"gs://{bucket.name}/").read(f"gs://{bucket.name}/{name}")

    def test_a_storage_that_is_gone_is_one_bad_image_soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
        began = time.monotonic()
        with pytest.raises(ImageError, match=r"cannot be read: .*, 3 times"):
            source("gs://bucket/").read("gs://bucket/a.jpg")
        assert time.monotonic() - began < 10


def test_works_on_a_worker_that_it_was_sent_to(web: PhotoServer) -> None:
    reader = source(web.address)
    assert reader.read(f"{web.address}/photos/ok") == PHOTO
    assert pickle.loads(pickle.dumps(reader)).read(f"{web.address}/photos/ok") == PHOTO


class TestRelativeAddress:
    @pytest.mark.parametrize(
        ("uri", "root", "absolute"),
        [
            ("a/b.jpg", "/data/photos", "/data/photos/a/b.jpg"),
            ("a/b.jpg", "gs://bucket/photos/", "gs://bucket/photos/a/b.jpg"),
            ("a..b.jpg", "/data", "/data/a..b.jpg"),
            ("/elsewhere/b.jpg", "/data", "/elsewhere/b.jpg"),
            ("https://img.example.com/b.jpg", "/data", "https://img.example.com/b.jpg"),
            ("gs://bucket/b.jpg", None, "gs://bucket/b.jpg"),
        ],
    )
    def test_starts_from_its_windows_root(self, uri: str, root: str | None, absolute: str) -> None:
        assert resolve_uri(uri, root) == absolute

    @pytest.mark.parametrize(
        ("uri", "root", "reason"),
        [
            ("b.jpg", None, "names no image root"),
            ("", None, "names no image root"),
            ("../b.jpg", "/data/photos", "outside the folders"),
            ("a/../../b", "/data/photos", "outside the folders"),
            ("../b.jpg", "gs://bucket/photos", "not among"),
        ],
    )
    def test_one_without_a_root_or_out_of_it_is_refused_when_read(
        self, uri: str, root: str | None, reason: str
    ) -> None:
        with pytest.raises(ImageError, match=reason):
            source("/data/photos", "gs://bucket/photos").read(resolve_uri(uri, root))
