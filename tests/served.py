"""The search service for tests: in this process, or on a port of this machine, as a browser or any other program meets it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from threading import Thread
from typing import Any

import httpx
import uvicorn
from fastapi.testclient import TestClient
from httpx import Response
from small_index import Small

from listing_lens.serving.app import create_app
from listing_lens.serving.query_embedder import Generator
from listing_lens.serving.service import Service

_KEY = "a key of the shop"
AS_SHOP = {"Authorization": f"Bearer {_KEY}"}


def service_of(small: Small, generator: Generator | None = None, **changed: Any) -> Service:
    """A service of the small indexes, with other settings: without rates, with a key; it is told when to look at the alias."""
    settings = {
        "search_keys": {"shop": sha256(_KEY.encode()).hexdigest()},
        "search_rates": {},
        "search_log_every_s": 0.01,
        "search_follow_s": 3600,
    }
    return Service.of(small.settings.model_copy(update={**settings, **changed}), generator)


@contextmanager
def answering(service: Service, **options: Any) -> Iterator[TestClient]:
    """A client of a service that has looked where the alias points."""
    # A fault is raised as well as answered; here its answer counts.
    with TestClient(create_app(service), raise_server_exceptions=False, **options) as client:
        assert client.portal is not None
        client.portal.call(service.follower.step)
        yield client


def problem(answer: Response, status: int, field: str | None = None) -> str:
    """The detail of a problem that an answer must be."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert body.get("field") == field
    return str(body["detail"])


@contextmanager
def served(service: Service, *, ready: bool = True) -> Iterator[str]:
    """The address of a service that runs meanwhile, and is ready unless that is not waited for."""
    config = uvicorn.Config(create_app(service), host="127.0.0.1", port=0, log_config=None, proxy_headers=False)
    server = uvicorn.Server(config)
    thread = Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        while ready and httpx.get(f"{address}/health/ready", timeout=60).status_code != httpx.codes.OK:
            time.sleep(0.05)
        yield address
    finally:
        server.should_exit = True
        thread.join()
