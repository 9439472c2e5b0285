"""What the tests of following the champion share."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from listing_lens.registry import connect_registry
from listing_lens.search.index import SearchIndex
from listing_lens.settings import load_settings
from models.embedder import CHAMPION, MODEL
from models.registry import Registry


@pytest.fixture
def without_champion(mlflow_url: str, elasticsearch_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """The registry without a champion, and an alias of this test's own without an index.

    The champion is the whole server's, so it is set aside and put back.
    """
    settings = load_settings(
        mlflow_url=mlflow_url, elasticsearch_url=elasticsearch_url, alias=f"test-{uuid4().hex[:8]}"
    )
    for name in ("mlflow_url", "elasticsearch_url", "alias"):
        monkeypatch.setenv(f"LENS_{name.upper()}", getattr(settings, name))
    registry = connect_registry(settings)
    before = registry.champion()
    if before:
        registry.client.delete_registered_model_alias(MODEL, CHAMPION)
    yield registry
    if before:
        registry.client.set_registered_model_alias(MODEL, CHAMPION, str(before.version))
    elif registry.has(CHAMPION):
        registry.client.delete_registered_model_alias(MODEL, CHAMPION)
    search_index = SearchIndex.connect(settings)
    for index in search_index.all():
        search_index.client.indices.delete(index=index.name)
