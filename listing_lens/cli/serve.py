"""`lens serve`: the search service; `lens key`: a key for one that writes to it."""

from __future__ import annotations

import secrets
from hashlib import sha256
from typing import Annotated

import typer

from listing_lens.cli.console import console
from listing_lens.settings import load_settings


def serve(
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = 8000,
) -> None:
    """Answer searches by photo or words and similar items over HTTP, with a page for buyers; /openapi.json is the API."""
    # Imported here: the web framework is slow to import, and the other commands do not need it.
    from listing_lens.serving.server import serve

    serve(load_settings(), host, port)


def key(name: Annotated[str, typer.Argument(help="Names whoever gets the key, in logs and limits.")]) -> None:
    """Make an API key for the search service, and show the setting that makes it known there. It is kept nowhere."""
    made = secrets.token_urlsafe(32)
    digest = sha256(made.encode()).hexdigest()
    console.print(f"key:     {made}", highlight=False)
    console.print(f'setting: LENS_SEARCH_KEYS={{"{name}": "{digest}"}}', highlight=False)
