"""Asking a service that runs, as `lens search` does where there is one: the same answer as without it, many times as fast."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from served import served, service_of
from small_index import Small

from listing_lens.errors import LensError
from listing_lens.serving.listing_search import as_page, search_listings
from listing_lens.serving.search_client import SearchClient, ServiceAwayError
from listing_lens.serving.service import Service


@pytest.fixture(scope="module")
def url(small: Small) -> Iterator[str]:
    with served(Service.of(small.settings)) as url:
        yield url


@pytest.mark.parametrize(
    ("photos", "text"),
    [
        (["m011"], ""),
        ([], "red shoes"),
        (["m011"], "red shoes"),
        (["m003", "m011"], ""),
        (["m003", "m011"], "赤い靴 & more"),
    ],
    ids=["a photo", "words", "both", "several photos", "several photos and words"],
)
def test_the_service_finds_what_is_found_without_it(small: Small, url: str, photos: list[str], text: str) -> None:
    before = logged(small)
    # The weight is the caller's, and not the service's own.
    settings = small.settings.model_copy(update={"search_text_weight": 0.3})
    paths = [small.photo(item_id) for item_id in photos]
    by_service = search_listings(paths, text, 5, settings.model_copy(update={"search_url": url}))
    here = search_listings(paths, text, 5, settings)
    assert [hit.item_id for hit in by_service.hits] == [hit.item_id for hit in here.hits]
    assert [hit.score for hit in by_service.hits] == pytest.approx([hit.score for hit in here.hits], abs=1e-4)
    assert (by_service.index, by_service.space) == (here.index, here.space)
    assert as_page(by_service).count("data:image/jpeg;base64,") == 5 + len(photos)
    # An engineer's search is no buyer's.
    assert logged(small) == before


def logged(small: Small) -> list[Path]:
    return sorted(Path(small.settings.lake, "logs", "searches").rglob("*.*"))


def test_without_a_service_the_search_is_made_here(small: Small) -> None:
    away = small.settings.model_copy(update={"search_url": "http://127.0.0.1:1"})
    assert search_listings([small.photo("m011")], "", 1, away).hits[0].item_id == "m011"


def test_what_the_service_refuses_is_said(url: str) -> None:
    with SearchClient(url) as client, pytest.raises(LensError, match=r"answers 422: photo: not an image"):
        client.search([b"<svg/>"], "", 3, 0.5)
    with SearchClient("http://127.0.0.1:1") as client, pytest.raises(ServiceAwayError, match="cannot be reached"):
        client.search([], "red shoes", 3, 0.5)


def test_words_that_the_service_knows_none_of_are_said(small: Small) -> None:
    with served(service_of(small, search_text=False)) as url:
        settings = small.settings.model_copy(update={"search_url": url})
        with pytest.raises(LensError, match=r"answers 422: text: searches by words are switched off"):
            search_listings([], "red shoes", 3, settings)


def test_the_index_that_is_searched_can_be_waited_for(small: Small, url: str) -> None:
    with SearchClient(url) as client:
        client.wait_until_searching(small.live.name)
        with pytest.raises(LensError, match=f"does not search another after 0 s: it searches {small.live.name}"):
            client.wait_until_searching("another", timeout_s=0)
    with SearchClient("http://127.0.0.1:1") as client, pytest.raises(LensError, match="`lens status` says more"):
        client.wait_until_searching(small.live.name)
