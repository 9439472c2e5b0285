"""Jobs run as they do alone: `main()` with arguments, settings from the environment, on Beam's local runner."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import uuid4

import pytest
import quick_beam
from small_index import Small, small_index
from tenacity import wait_none
from tiny import Indexed, land_marketplace, remove_indexes

from beam_jobs import embed_listings, fit_projection
from listing_lens.lake.fits import load_fit
from listing_lens.lake.windows import Lake
from listing_lens.search.index import SearchIndex
from listing_lens.settings import load_settings
from models.encoders.files import identify

quick_beam.remember()


def _settings(lake: Path, encoder: Path) -> dict[str, str]:
    return {
        "LENS_LAKE": str(lake),
        "LENS_ENCODER": str(encoder),
        "LENS_ENCODER_BACKENDS": '["float32"]',
        "LENS_PROJECTION_DIMS": "8",
        "LENS_ENCODER_BATCH_SIZE": "8",
        "LENS_MAX_DEAD_LETTER_RATIO": "0.1",
    }


@pytest.fixture
def lake(tmp_path: Path, untrained_siglip: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """An empty lake, and settings that name it and a small encoder."""
    for name, value in _settings(tmp_path / "lake", untrained_siglip).items():
        monkeypatch.setenv(name, value)
    return Lake(str(tmp_path / "lake"))


@pytest.fixture(scope="session")
def embedded_marketplace(tmp_path_factory: pytest.TempPathFactory, untrained_siglip: Path) -> Path:
    """The lake of a tiny marketplace, embedded and fitted once for all tests, which copy it."""
    folder = tmp_path_factory.mktemp("marketplace")
    with pytest.MonkeyPatch.context() as environment:
        for name, value in _settings(folder / "lake", untrained_siglip).items():
            environment.setenv(name, value)
        environment.setenv("LENS_HOME", str(folder / "home"))
        land_marketplace(Lake(str(folder / "lake")))
        embed_listings.main(["--each_landed"])
        fit_projection.main(["--name", "fit"])
    return folder / "lake"


@pytest.fixture
def encoder_id(untrained_siglip: Path) -> str:
    """The id of the encoder that the settings name."""
    return identify(str(untrained_siglip))


class PhotoServer(ThreadingHTTPServer):
    """A web server of photos, which can be away, and can be made to wait with an answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Photos)
        self.photos: dict[str, bytes] = {}
        self.away = False
        # How often each photo was asked for.
        self.asked: Counter[str] = Counter()
        # Photos that are answered when the test lets them; `waiting` is set when one was asked for.
        self.held: dict[str, threading.Event] = {}
        self.waiting = threading.Event()

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def hold(self, name: str) -> threading.Event:
        """Do not answer for a photo before the event that this returns is set."""
        self.held[name] = threading.Event()
        return self.held[name]


class _Photos(BaseHTTPRequestHandler):
    server: PhotoServer

    def do_GET(self) -> None:
        name = self.path.removeprefix("/")
        self.server.asked[name] += 1
        if name in self.server.held:
            self.server.waiting.set()
            self.server.held[name].wait()
        data = self.server.photos.get(name, b"")
        self.send_response(503 if self.server.away else 200 if data else 404)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def photo_server(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Iterator[PhotoServer]:
    """A web server whose photos may be read, and no waiting between tries in this process."""
    server = PhotoServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("LENS_IMAGE_SOURCES", json.dumps([server.root]))
    monkeypatch.setenv("LENS_IMAGE_PRIVATE_NETWORKS", '["127.0.0.0/8"]')
    # What is held is waited for, also on a busy machine.
    monkeypatch.setenv("LENS_IMAGE_TIMEOUT_S", "600")
    monkeypatch.setattr("listing_lens.images.source.wait_exponential_jitter", lambda **_: wait_none())
    yield server
    for event in server.held.values():
        event.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def indexed(
    lake: Lake, embedded_marketplace: Path, elasticsearch_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Indexed]:
    """A tiny marketplace, embedded and fitted, and an empty index for it behind an alias of this test's own."""
    monkeypatch.setenv("LENS_ELASTICSEARCH_URL", elasticsearch_url)
    monkeypatch.setenv("LENS_ALIAS", f"test-{uuid4().hex[:8]}")
    shutil.copytree(embedded_marketplace, lake.root)
    search_index = SearchIndex.connect(load_settings())
    card = load_fit(lake, "fit").card
    yield Indexed(lake, search_index, search_index.create(card, "one"))
    remove_indexes(search_index)


@pytest.fixture(scope="module")
def small_market(
    tmp_path_factory: pytest.TempPathFactory, elasticsearch_url: str, untrained_siglip: Path
) -> Iterator[Small]:
    """Twenty photos and two indexes of them, for a module that tells of more."""
    with small_index(tmp_path_factory.mktemp("market"), elasticsearch_url, untrained_siglip) as made:
        yield made


@pytest.fixture
def market(small_market: Small, monkeypatch: pytest.MonkeyPatch) -> Small:
    """The module's market, whose settings jobs find in the environment."""
    for name, value in small_market.settings.environment.items():
        monkeypatch.setenv(name, value)
    return small_market
