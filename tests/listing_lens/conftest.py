"""What these tests share: a Cloud Storage that is not Google's, and property tests that wait for a busy machine."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from gcp_storage_emulator.server import create_server
from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Bucket, Client
from hypothesis import settings

settings.register_profile("no deadline", deadline=None, database=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def storage_address() -> Iterator[str]:
    """A server that speaks the Cloud Storage API, in memory."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = create_server("127.0.0.1", port, in_memory=True)
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture
def bucket(storage_address: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A new bucket on the emulated Cloud Storage, which this test's clients talk to."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage_address)
    client = Client(project="emulator", credentials=AnonymousCredentials())
    return client.create_bucket(f"bucket-{abs(hash(request.node.nodeid)):x}")
