"""Asking a service that runs, as `lens search` does where there is one: the same answer as without it, many times as fast."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from served import served
from small_index import Small

from listing_lens.errors import LensError
from listing_lens.serving.photo_search import as_page, search_by_photo
from listing_lens.serving.search_client import SearchClient, ServiceAwayError
from listing_lens.serving.service import Service


@pytest.fixture(scope="module")
def url(small: Small) -> Iterator[str]:
    with served(Service.of(small.settings)) as url:
        yield url


def test_the_service_finds_what_is_found_without_it(small: Small, url: str) -> None:
    before = logged(small)
    by_service = search_by_photo(small.photo("m011"), 5, small.settings.model_copy(update={"search_url": url}))
    here = search_by_photo(small.photo("m011"), 5, small.settings)
    assert [hit.item_id for hit in by_service.hits] == [hit.item_id for hit in here.hits]
    assert [hit.score for hit in by_service.hits] == pytest.approx([hit.score for hit in here.hits], abs=1e-4)
    assert (by_service.index, by_service.space) == (here.index, here.space)
    assert as_page(by_service).count("data:image/jpeg;base64,") == 6
    # An engineer's search is no buyer's.
    assert logged(small) == before


def logged(small: Small) -> list[Path]:
    return sorted(Path(small.settings.lake, "logs", "searches").rglob("*.jpg"))


def test_without_a_service_the_search_is_made_here(small: Small) -> None:
    away = small.settings.model_copy(update={"search_url": "http://127.0.0.1:1"})
    assert search_by_photo(small.photo("m011"), 1, away).hits[0].item_id == "m011"


def test_what_the_service_refuses_is_said(url: str) -> None:
    with SearchClient(url) as client, pytest.raises(LensError, match=r"answers 422: photo: not an image"):
        client.search(b"<svg/>", 3)
    with SearchClient("http://127.0.0.1:1") as client, pytest.raises(ServiceAwayError, match="cannot be reached"):
        client.search(b"", 3)


def test_the_index_that_is_searched_can_be_waited_for(small: Small, url: str) -> None:
    with SearchClient(url) as client:
        client.wait_until_searching(small.live.name)
        with pytest.raises(LensError, match=f"does not search another after 0 s: it searches {small.live.name}"):
            client.wait_until_searching("another", timeout_s=0)
    with SearchClient("http://127.0.0.1:1") as client, pytest.raises(LensError, match="`lens status` says more"):
        client.wait_until_searching(small.live.name)
