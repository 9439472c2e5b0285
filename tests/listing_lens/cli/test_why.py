"""`lens why`: what a person reads who asks where a listing is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from tiny import FIRST, listing, put_items

from listing_lens.lake.windows import Lake
from listing_lens.settings import load_settings

if TYPE_CHECKING:
    from tests.listing_lens.cli.conftest import Lens, Marketplace

ENCODER = "small-12345678"


def test_a_listing_that_is_found_is_shown_everywhere(lens: Lens, marketplace: Marketplace) -> None:
    result = lens("why", "m007")
    assert result.exit_code == 0, result.output
    live = marketplace.search_index.require_live()
    assert f"encoder {marketplace.card.encoder_id}\n" in result.stdout
    assert f"index {live.name}\n" in result.stdout
    assert "on_sale, found by searches" in result.stdout
    assert result.stdout.splitlines()[-1] == "It is searchable in the live index, in its newest version."


@pytest.mark.parametrize(
    ("item_id", "words"),
    [
        ("m001", "It is sold since 2026-11-02 01:30:00, so no search finds it."),
        ("m002", "It is not searchable: its photo could not be decoded ("),
        ("m[/]1", "Nothing is known of 'm[/]1': "),
    ],
    ids=["sold", "dead letter", "unknown"],
)
def test_a_listing_that_is_not_found_is_explained(
    lens: Lens, marketplace: Marketplace, item_id: str, words: str
) -> None:
    result = lens("why", item_id)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].startswith(words)


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:1"], ids=["not configured", "away"])
def test_without_a_cluster_the_lake_is_shown(lens: Lens, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("LENS_ELASTICSEARCH_URL", url)
    put_items(Lake(load_settings().lake), ENCODER, [listing("a[b]")], [np.eye(1, 8, dtype=np.float32)[0]])
    result = lens("why", "a[b]")
    assert result.exit_code == 0, result.output
    assert f"encoder {ENCODER}\n" in result.stdout
    assert str(FIRST) in result.stdout
    *_, answer, trouble = result.stdout.splitlines()
    assert answer.startswith("The lake has it as on_sale")
    assert trouble.startswith("The indexes were not looked at: ")
