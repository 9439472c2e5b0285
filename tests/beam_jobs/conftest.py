"""Jobs run as they do alone: `main()` with arguments, settings from the environment, on Beam's local runner."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from tiny import FIRST, SECOND, Indexed, land_marketplace

from beam_jobs import embed_listings, fit_projection
from listing_lens.lake.fits import load_fit
from listing_lens.lake.windows import Lake
from listing_lens.search.index import SearchIndex
from listing_lens.settings import load_settings


@pytest.fixture
def lake(tmp_path: Path, untrained_siglip: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """An empty lake, and settings that name it and a small encoder."""
    monkeypatch.setenv("LENS_LAKE", str(tmp_path / "lake"))
    monkeypatch.setenv("LENS_ENCODER", str(untrained_siglip))
    monkeypatch.setenv("LENS_PROJECTION_DIMS", "8")
    monkeypatch.setenv("LENS_ENCODER_BATCH_SIZE", "8")
    monkeypatch.setenv("LENS_MAX_DEAD_LETTER_RATIO", "0.1")
    return Lake(str(tmp_path / "lake"))


@pytest.fixture
def indexed(lake: Lake, elasticsearch_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Indexed]:
    """A tiny marketplace, embedded and fitted, and an empty index for it behind an alias of this test's own."""
    monkeypatch.setenv("LENS_ELASTICSEARCH_URL", elasticsearch_url)
    monkeypatch.setenv("LENS_ALIAS", f"test-{uuid4().hex[:8]}")
    land_marketplace(lake)
    embed_listings.main(["--window_start", str(FIRST.start), "--window_end", str(SECOND.end), "--each_landed"])
    fit_projection.main(["--name", "fit"])
    search_index = SearchIndex.connect(load_settings())
    card = load_fit(lake, "fit").card
    yield Indexed(lake, search_index, search_index.create(card, "one"))
    for index in search_index.all():
        search_index.client.indices.delete(index=index.name)
