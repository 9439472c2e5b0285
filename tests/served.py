"""The search service on a port of this machine, as a browser or any other program meets it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import httpx
import uvicorn

from listing_lens.serving.app import create_app
from listing_lens.serving.service import Service


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
