"""Reading images from addresses that strangers wrote: nothing but what is allowed is read, nothing hangs, nothing crashes.

An address is hostile until proven otherwise, and any exception but `ImageError` would fail a whole batch. The web server
and the Cloud Storage are real ones on this machine; names are looked up in the test, never in the DNS.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from google.cloud.storage import Bucket
from hypothesis import given, settings
from hypothesis import strategies as st

from listing_lens.errors import LensError
from listing_lens.images.public_network import Resolver, system_resolver
from listing_lens.images.source import ImageSource, resolve_uri
from models.images import ImageError, ImageLimits

LIMITS = ImageLimits(max_bytes=1000, max_pixels=1000)
PHOTO = b"the bytes of a photo"


HERE = ("127.0.0.0/8", "::1/128")


def stopped() -> float:
    """A clock that stands still, so that however long a test takes, no deadline passes."""
    return 0.0


def at_once(_seconds: float) -> None:
    """Does not wait between tries."""


def source(
    *allowed: str,
    timeout_s: float = 60.0,
    private_networks: tuple[str, ...] = HERE,
    resolve: Resolver = system_resolver,
    clock: Callable[[], float] = stopped,
    sleep: Callable[[float], None] = at_once,
) -> ImageSource:
    return ImageSource(allowed, LIMITS, timeout_s, private_networks, resolve, clock, sleep)


def nobody(host: str, port: int) -> list[str]:
    """A resolver that knows no host."""
    raise socket.gaierror(socket.EAI_NONAME, "nobody knows it")


class PhotoServer(ThreadingHTTPServer):
    """Answers by what the path begins with, and counts what it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.asked: Counter[str] = Counter()
        # Set when the test is over, so that no answer goes on for longer.
        self.over = threading.Event()
        self.elsewhere = ""
        # The names that clients asked for when the connection was encrypted.
        self.named: list[str] = []
        # The status that it answers with in place of Cloud Storage.
        self.storage_status = 200

    def handle_error(self, request: object, client_address: object) -> None:
        # Clients that leave before the end are what these tests are about.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(BaseHTTPRequestHandler):
    server: PhotoServer
    # Connections stay open for the next image.
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked[self.path] += 1
        name, _, argument = self.path.removeprefix("/photos/").partition("/")
        answer = getattr(self, f"_{name}", None)
        if self.path.startswith("/download/storage/"):
            self._send(self.server.storage_status)
        elif answer:
            answer(argument)
        else:
            self._send(404, b"<title>not here</title>")

    def do_POST(self) -> None:
        self.server.asked[self.path] += 1
        self._send(400, b'{"error": "invalid_grant"}', **{"Content-Type": "application/json"})

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

    def _gzip(self, _: str) -> None:
        self._send(200, gzip.compress(bytes(1000)), **{"Content-Encoding": "gzip"})

    def _mirror(self, _: str) -> None:
        self._send(200, f"{self.headers['Host']} {self.headers['Accept-Encoding']}".encode())

    def _headers(self, _: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
        self._drip_on(0.01, b"x")

    def _stall(self, _: str) -> None:
        self._drip(None, b"x")

    def _slow(self, _: str) -> None:
        self._drip(0.01, b"x")

    def _cut(self, _: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "500")
        self.end_headers()
        self.wfile.write(PHOTO)
        self.close_connection = True

    def _drip(self, pause_s: float | None, piece: bytes) -> None:
        self.send_response(200)
        self.end_headers()
        self._drip_on(pause_s, piece)

    def _drip_on(self, pause_s: float | None, piece: bytes) -> None:
        """Without a pause's length, one piece is all until the test is over."""
        self.close_connection = True
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
        with pytest.raises(ImageError, match=r"cannot be fetched: ConnectError \(.*refused\), 3 times"):
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
            ("mad", "is not among LENS_IMAGE_SOURCES"),
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

    @pytest.mark.parametrize("path", ["slow", "headers"])
    def test_a_server_that_drips_is_left_too(self, web: PhotoServer, path: str) -> None:
        # Ten seconds go by whenever somebody looks, which is before each wait; no single wait reaches its minute.
        clock = partial(next, count(0.0, 10.0))
        with pytest.raises(ImageError, match=r"not complete after 360 s"):
            source(web.address, clock=clock).read(f"{web.address}/photos/{path}")
        assert web.asked.total() == 1

    def test_tries_take_no_longer_than_all_of_an_image_may(self, web: PhotoServer) -> None:
        # Each look costs a timeout.
        clock = partial(next, count(0.0, 60.0))
        with pytest.raises(ImageError, match=r"not complete after 360 s"):
            source(web.address, clock=clock).read(f"{web.address}/photos/status/503")
        assert web.asked.total() < 3

    def test_between_tries_it_waits_a_little(self, web: PhotoServer) -> None:
        waited: list[float] = []
        with pytest.raises(ImageError, match="3 times"):
            source(web.address, sleep=waited.append).read(f"{web.address}/photos/status/503")
        assert len(waited) == 2
        assert all(0 < seconds <= 5 for seconds in waited)

    def test_a_compressed_answer_is_refused_and_none_is_asked_for(self, web: PhotoServer) -> None:
        with pytest.raises(ImageError, match="compressed"):
            source(web.address).read(f"{web.address}/photos/gzip")
        host = web.address.removeprefix("http://")
        assert source(web.address).read(f"{web.address}/photos/mirror") == f"{host} identity".encode()

    def test_threads_share_a_source(self, web: PhotoServer) -> None:
        reader = source(web.address)
        with ThreadPoolExecutor(16) as threads:
            assert set(threads.map(reader.read, [f"{web.address}/photos/ok"] * 64)) == {PHOTO}

    def test_one_connection_serves_several_images(self, web: PhotoServer) -> None:
        looked_up: list[str] = []

        def resolve(host: str, _port: int) -> list[str]:
            looked_up.append(host)
            return ["127.0.0.1"]

        address = f"http://img.example.com:{web.server_address[1]}"
        reader = source(address, resolve=resolve)
        for _ in range(3):
            assert reader.read(f"{address}/photos/ok") == PHOTO
        assert looked_up == ["img.example.com"]

    @settings(max_examples=60)
    @given(
        st.tuples(
            st.sampled_from([b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 302 x\r\nLocation: ", b"HTTP/9 999 \r\n", b""]),
            st.lists(
                st.binary(max_size=20)
                | st.sampled_from(
                    [
                        *(b"\r\n", b"\r\n\r\n", b"Content-Length: -1\r\n", b"Content-Length: 5\r\n", b"http://[/"),
                        *(b"Transfer-Encoding: chunked\r\n", b"ffffffffffffffffff\r\n", b"HTTP/1.1 100 go on\r\n"),
                    ]
                ),
                max_size=6,
            ).map(b"".join),
        ).map(b"".join)
    )
    def test_whatever_a_server_answers_is_bytes_or_one_bad_image(self, answer: bytes) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            thread = threading.Thread(target=_answer_all, args=(listening, answer))
            thread.start()
            address = f"http://127.0.0.1:{listening.getsockname()[1]}"
            try:
                assert len(source(address).read(f"{address}/a.jpg")) <= LIMITS.max_bytes
            except ImageError:
                pass
            finally:
                listening.shutdown(socket.SHUT_RDWR)
                thread.join()


def _answer_all(listening: socket.socket, answer: bytes) -> None:
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:
            # It was shut.
            return
        with connection:
            connection.recv(10_000)
            connection.sendall(answer)


class TestNetwork:
    """Names and addresses that lead where nobody may read."""

    @pytest.mark.parametrize(
        "host",
        ["127.0.0.1", "127.1", "0x7f000001", "2130706433", "017700000001", "[::1]", "[::ffff:127.0.0.1]", "localhost"],
    )
    def test_this_machine_is_not_public_however_it_is_written(self, web: PhotoServer, host: str) -> None:
        address = f"http://{host}:{web.server_address[1]}"
        with pytest.raises(ImageError, match="which is not public: .* LENS_IMAGE_PRIVATE_NETWORKS$"):
            source(address, private_networks=()).read(f"{address}/photos/ok")
        assert not web.asked

    @pytest.mark.parametrize("answers", [["127.0.0.1"], ["93.184.215.14", "127.0.0.1"], ["::ffff:127.0.0.1"]])
    def test_a_name_with_one_private_address_is_refused(self, web: PhotoServer, answers: list[str]) -> None:
        address = f"http://img.example.com:{web.server_address[1]}"
        with pytest.raises(ImageError, match="img.example.com has the address .*, which is not public"):
            source(address, private_networks=(), resolve=lambda *_: answers).read(f"{address}/photos/ok")
        assert not web.asked

    def test_a_redirect_to_a_private_address_is_refused(self, web: PhotoServer, another: PhotoServer) -> None:
        web.elsewhere = f"http://inside.example.com:{another.server_address[1]}"
        reader = source(
            web.address,
            web.elsewhere,
            private_networks=("127.0.0.1/32",),
            resolve=lambda host, _: ["127.0.0.1" if host == "127.0.0.1" else "127.0.0.2"],
        )
        with pytest.raises(ImageError, match="inside.example.com has the address 127.0.0.2, which is not public"):
            reader.read(f"{web.address}/photos/away/ok")
        assert not another.asked

    def test_the_connection_goes_to_the_address_that_was_judged(self, web: PhotoServer) -> None:
        answers = iter([["127.0.0.1"], ["10.0.0.1"]])
        address = f"http://img.example.com:{web.server_address[1]}"
        assert source(address, resolve=lambda *_: next(answers)).read(f"{address}/photos/ok") == PHOTO
        assert next(answers) == ["10.0.0.1"]

    def test_the_next_address_is_tried_when_one_does_not_answer(self, web: PhotoServer) -> None:
        address = f"http://img.example.com:{web.server_address[1]}"
        reader = source(address, resolve=lambda *_: ["::1", "127.0.0.1"])
        assert reader.read(f"{address}/photos/ok") == PHOTO

    def test_a_name_without_addresses_is_tried_again(self) -> None:
        asked: list[str] = []

        def resolve(host: str, port: int) -> list[str]:
            asked.append(host)
            return nobody(host, port)

        with pytest.raises(ImageError, match="cannot be looked up: nobody knows it.*, 3 times"):
            source("http://img.example.com", resolve=resolve).read("http://img.example.com/a.jpg")
        assert len(asked) == 3

    def test_name_servers_that_are_silent_are_left(self) -> None:
        over = threading.Event()

        def resolve(host: str, port: int) -> list[str]:
            over.wait()
            return nobody(host, port)

        try:
            with pytest.raises(ImageError, match="cannot be fetched: ConnectTimeout, 3 times"):
                source("http://img.example.com", timeout_s=0.1, resolve=resolve).read("http://img.example.com/a.jpg")
        finally:
            over.set()


class TestEncrypted:
    """HTTPS, by a certificate authority of the test's own."""

    @pytest.fixture
    def authority(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
        authority = Authority(tmp_path)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate_file))
        return authority

    @pytest.fixture
    def encrypted(self, web: PhotoServer, authority: Authority) -> PhotoServer:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(authority.issue("img.example.com"))
        context.sni_callback = lambda _socket, name, _context: web.named.append(name)
        web.socket = context.wrap_socket(web.socket, server_side=True)
        return web

    def test_the_certificate_is_checked_by_the_hosts_name(self, encrypted: PhotoServer) -> None:
        port = encrypted.server_address[1]
        for host in ("img.example.com", "other.example.com"):
            address = f"https://{host}:{port}"
            reader = source(address, resolve=lambda *_: ["127.0.0.1"])
            if host == "img.example.com":
                assert reader.read(f"{address}/photos/ok") == PHOTO
                assert encrypted.named == [host]
            else:
                with pytest.raises(ImageError, match="ConnectError .*certificate.*, 3 times"):
                    reader.read(f"{address}/photos/ok")
        assert encrypted.asked.total() == 1

    def test_a_certificate_of_nobody_is_refused(self, encrypted: PhotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SSL_CERT_FILE")
        address = f"https://img.example.com:{encrypted.server_address[1]}"
        with pytest.raises(ImageError, match="ConnectError .*certificate.*, 3 times"):
            source(address, resolve=lambda *_: ["127.0.0.1"]).read(f"{address}/photos/ok")

    def test_a_redirect_that_drops_the_encryption_is_refused(
        self, encrypted: PhotoServer, another: PhotoServer
    ) -> None:
        encrypted.elsewhere = another.address
        address = f"https://img.example.com:{encrypted.server_address[1]}"
        with pytest.raises(ImageError, match="a redirect from https:// to http://"):
            source(address, another.address, resolve=lambda *_: ["127.0.0.1"]).read(f"{address}/photos/away/ok")
        assert not another.asked

    def test_a_server_that_never_shakes_hands_is_left(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"https://127.0.0.1:{silent.getsockname()[1]}"
            with pytest.raises(ImageError, match="cannot be fetched: ConnectTimeout, 3 times"):
                source(address, timeout_s=0.1).read(f"{address}/a.jpg")


class Authority:
    """A certificate authority that nobody but this test knows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the test's authority")])
        certificate = self._signed(self._name, self._key).add_extension(x509.BasicConstraints(True, 0), True)
        self.certificate_file = folder / "authority.pem"
        self.certificate_file.write_bytes(_as_pem(certificate.sign(self._key, hashes.SHA256())))

    def issue(self, host: str) -> Path:
        """A file with the key and the certificate of a host."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        names = x509.SubjectAlternativeName([x509.DNSName(host)])
        certificate = self._signed(name, key).add_extension(names, False).sign(self._key, hashes.SHA256())
        text = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file = self._folder / f"{host}.pem"
        file.write_bytes(text + _as_pem(certificate))
        return file

    def _signed(self, name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder(self._name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
        )


def _as_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


# What addresses are made of, and what parsers disagree about.
_PIECES = (
    *(
        "https://",
        "http://",
        "HTTPS://",
        "gs://",
        "file://",
        "ftp://",
        "//",
        "://",
        ":",
        "/",
        "\\",
        "@",
        "#",
        "?",
        "%",
        "&",
    ),
    *(
        "img.example.com",
        "evil.org",
        "bucket",
        "photos",
        "data",
        "a.jpg",
        "xn--",
        "ü",
        "。",
        "\uff0f",
        "\ud800",
        "\0",
        "\r\n",
    ),
    *(
        "127.0.0.1",
        "127.1",
        "0x7f000001",
        "2130706433",
        "017700000001",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[fe80::1%25eth0]",
    ),
    *(":443", ":80", ":9", ":0", ":99999", ":-1", "..", "%2e%2e", "%00", "%ff", "." * 300, "x" * 300),
)


class TestAllowed:
    @pytest.mark.parametrize(
        "uri",
        [
            "https://img.example.com.evil.org/photos/a.jpg",
            "https://img.example.com:8443/photos/a.jpg",
            "http://img.example.com/photos/a.jpg",
            "https://evil.org/https://img.example.com/photos/a.jpg",
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
            source("https://img.example.com/", "gs://bucket/", "/data/photos").read(uri)

    @given(st.lists(st.sampled_from(_PIECES) | st.text(max_size=3), max_size=12).map("".join))
    def test_no_address_raises_anything_else(self, uri: str) -> None:
        with pytest.raises(ImageError):
            source("https://img.example.com/", "http://[::1]:9/", "/data/photos", resolve=nobody).read(uri)

    @pytest.mark.parametrize(
        "uri",
        [
            "https://img.example.com@evil.org/photos/a.jpg",
            "https://img.example.com:443@evil.org/photos/a.jpg",
            "https://img.example.com\\@evil.org/photos/a.jpg",
            "https://user@img.example.com/photos/a.jpg",
            "https://user:hush@img.example.com/photos/a.jpg",
        ],
    )
    def test_an_address_with_a_user_is_not_read(self, uri: str) -> None:
        with pytest.raises(ImageError, match=r"^an address with a user name or a password$"):
            source("https://img.example.com/photos").read(uri)

    @pytest.mark.parametrize(
        ("root", "uri"),
        [
            ("https://img.example.com/photos", "HTTPS://IMG.example.COM/photos/a.jpg"),
            ("https://img.example.com/photos", "https://img.example.com:443/photos/a.jpg"),
            ("https://img.example.com:443/photos/", "https://img.example.com/photos/x/../%C3%A9.jpg?w=1#top"),
            ("https://img.example.com/été", "https://img.example.com/%C3%A9t%C3%A9/a.jpg"),
            ("https://bücher.example", "https://xn--bcher-kva.example/a.jpg"),
        ],
    )
    def test_one_place_may_be_written_in_several_ways(self, root: str, uri: str) -> None:
        with pytest.raises(ImageError, match="cannot be looked up"):
            source(root, resolve=nobody).read(uri)

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
        here, sleep = threading.current_thread(), time.sleep

        def only_elsewhere(seconds: float) -> None:
            """What the client looks up about the bucket, in a thread of its own, may take its time."""
            assert threading.current_thread() is not here, "the client tries again by itself"
            sleep(seconds)

        monkeypatch.setattr(time, "sleep", only_elsewhere)
        waited: list[float] = []
        with pytest.raises(ImageError, match=r"cannot be read: .*, 3 times"):
            source("gs://bucket/", sleep=waited.append).read("gs://bucket/a.jpg")
        assert len(waited) == 2


class TestCredentials:
    @pytest.fixture(autouse=True)
    def no_waiting_between_tries(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Google's sign-in waits as well."""
        monkeypatch.setattr(time, "sleep", at_once)

    def test_none_at_all_fail_the_job(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
        with pytest.raises(LensError, match="^no Google Cloud credentials to read gs://bucket with: run `gcloud"):
            source("gs://bucket/").read("gs://bucket/a.jpg")

    def test_such_as_were_withdrawn_fail_the_job(
        self, web: PhotoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.sign_in(f"{web.address}/token", tmp_path, monkeypatch)
        with pytest.raises(LensError, match="^Google Cloud refuses the credentials to read gs://bucket with: renew"):
            source("gs://bucket/").read("gs://bucket/a.jpg")

    def test_a_server_of_tokens_that_is_gone_is_one_bad_image(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.sign_in("http://127.0.0.1:9/token", tmp_path, monkeypatch)
        with pytest.raises(ImageError, match="^cannot be read: TransportError, 3 times$"):
            source("gs://bucket/").read("gs://bucket/a.jpg")

    @staticmethod
    def sign_in(token_uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Be a service account whose tokens come from this address."""
        key = rsa.generate_private_key(65537, 2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        account = {
            "type": "service_account",
            "project_id": "p",
            "client_email": "reader@p.iam.gserviceaccount.com",
            "private_key": key.decode(),
            "token_uri": token_uri,
        }
        (folder / "account.json").write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(folder / "account.json"))

    @pytest.mark.parametrize(
        ("status", "error", "reason"),
        [
            (401, LensError, "^(no Google Cloud credentials|Google Cloud refuses)"),
            (403, ImageError, "^cannot be read: Forbidden$"),
            (404, ImageError, "^cannot be read: NotFound$"),
            (503, ImageError, "^cannot be read: ServiceUnavailable, 3 times$"),
        ],
    )
    def test_only_what_all_images_share_is_fatal(
        self, web: PhotoServer, monkeypatch: pytest.MonkeyPatch, status: int, error: type[Exception], reason: str
    ) -> None:
        web.storage_status = status
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", web.address)
        with pytest.raises(error, match=reason):
            source("gs://bucket/").read("gs://bucket/a.jpg")


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
