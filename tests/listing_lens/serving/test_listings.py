"""Listings told to the service, on a real node: found a moment later in every index, the newest version of each, whatever
happens to the service or the cluster meanwhile."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import Response
from served import AS_SHOP, answering, problem, service_of
from small_index import Small, small_index
from tiny import photo

from listing_lens.indexing.indexer import Indexer
from listing_lens.indexing.listing_log import ListingLog
from listing_lens.lake.window import Window
from listing_lens.lake.windows import LISTINGS, Lake
from listing_lens.serving.app import create_app
from listing_lens.serving.service import Service

BAG = {"title": "A bag", "category": ["A", "C"], "price": 900}
PATIENCE_S = 300.0


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory, elasticsearch_url: str, untrained_siglip: Path) -> Iterator[Small]:
    """Indexes of its own: this module writes to them."""
    with small_index(tmp_path_factory.mktemp("market"), elasticsearch_url, untrained_siglip) as made:
        yield made


@contextmanager
def serving(market: Small, **changed: Any) -> Iterator[TestClient]:
    with answering(service_of(market, **changed), headers=AS_SHOP) as client:
        yield client


@pytest.fixture(scope="module")
def client(market: Small) -> Iterator[TestClient]:
    with serving(market) as client:
        yield client


def waiting(client: TestClient) -> int:
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    return service.listings.waiting


def settled(client: TestClient) -> None:
    """Wait until all that was told is in the indexes."""
    until = time.monotonic() + PATIENCE_S
    while waiting(client):
        assert time.monotonic() < until
        time.sleep(0.01)


def put(client: TestClient, item_id: str, seed: int | None = None, **told: Any) -> Response:
    """Tell of a bag; with a seed, its photo is kept first."""
    if seed is not None:
        kept = client.post("/photos", content=photo(seed))
        assert kept.status_code == 201, kept.text
        told["image_uri"] = kept.json()["image_uri"]
    return client.put(f"/listings/{item_id}", json={**BAG, **told})


def found(client: TestClient, market: Small, seed: int) -> str:
    """The item that is nearest to a photo."""
    for index in (market.live, market.other):
        market.search_index.refresh(index.name)
    return str(client.post("/search", params={"k": 1}, content=photo(seed)).json()["results"][0]["item_id"])


class TestListing:
    def test_is_found_by_its_photo_in_every_index(self, client: TestClient, market: Small) -> None:
        assert put(client, "bag-1", 101).status_code == 202
        settled(client)
        assert found(client, market, 101) == "bag-1"
        for index in (market.live, market.other):
            [(version, vector)] = market.search_index.vectors(index.name, ["bag-1"]).values()
            assert vector is not None
            assert vector.shape == (4,)
            assert version > 0

    def test_is_what_was_told_last_by_its_own_time(self, client: TestClient, market: Small) -> None:
        now = datetime.now(UTC)
        put(client, "bag-2", 102, price=800, updated_at=now.isoformat())
        put(client, "bag-2", 102, price=700, updated_at=(now - timedelta(seconds=5)).isoformat())
        settled(client)
        assert client.get("/items/bag-2/similar").json()["item"]["price"] == 800
        put(client, "bag-2", 102, price=600, updated_at=(now + timedelta(seconds=1)).isoformat())
        settled(client)
        assert client.get("/items/bag-2/similar").json()["item"]["price"] == 600

    def test_that_is_sold_or_deleted_is_not_found(self, client: TestClient, market: Small) -> None:
        for item_id, seed in (("bag-3", 103), ("bag-4", 104)):
            put(client, item_id, seed)
        settled(client)
        assert [found(client, market, seed) for seed in (103, 104)] == ["bag-3", "bag-4"]
        # What is sold needs no photo.
        assert put(client, "bag-3", status="sold").status_code == 202
        assert client.delete("/listings/bag-4").status_code == 202
        settled(client)
        assert not {found(client, market, seed) for seed in (103, 104)} & {"bag-3", "bag-4"}
        # An older telling does not bring it back.
        put(client, "bag-4", 104, updated_at=(datetime.now(UTC) - timedelta(minutes=1)).isoformat())
        settled(client)
        assert found(client, market, 104) != "bag-4"

    def test_may_have_any_id(self, client: TestClient) -> None:
        assert put(client, "a/b c?日本".replace("?", "%3F"), 105).json()["item_id"] == "a/b c?日本"

    def test_is_for_those_who_have_a_key(self, client: TestClient) -> None:
        for answer in (
            client.put("/listings/bag", json=BAG, headers={"Authorization": ""}),
            client.delete("/listings/bag", headers={"Authorization": ""}),
            client.post("/photos", content=photo(1), headers={"Authorization": ""}),
        ):
            assert "need an API key" in problem(answer, 403, "authorization")

    @pytest.mark.parametrize(
        ("told", "field"),
        [
            ({"price": -1}, "price"),
            ({"price": None}, "price"),
            ({"category": [""]}, "category"),
            ({"status": "lost"}, "status"),
            ({"updated_at": "2200-01-01T00:00:00Z"}, "updated_at"),
            ({"updated_at": "2026-01-01T00:00:00"}, "updated_at"),
            ({"image_uri": None}, "image_uri"),
            ({"image_uri": "/etc/passwd"}, "image_uri"),
            ({"image_uri": "http://169.254.169.254/latest"}, "image_uri"),
            ({"image_uri": "file:///etc/passwd"}, "image_uri"),
            ({"seller": "ann"}, "seller"),
        ],
    )
    def test_that_cannot_be_is_refused_by_field(self, client: TestClient, told: dict[str, Any], field: str) -> None:
        problem(put(client, "bag", **{"image_uri": "x", **told}), 422, field)

    def test_with_a_photo_that_is_none_is_refused(self, client: TestClient, market: Small) -> None:
        problem(client.post("/photos", content=b"<svg/>"), 422, "photo")
        text = Path(market.settings.lake, "images", "note")
        text.parent.mkdir(exist_ok=True)
        text.write_text("not a photo")
        assert "not an image" in problem(put(client, "bag", image_uri=str(text)), 422, "image_uri")

    def test_that_changed_long_ago_is_for_an_import_where_the_service_feeds_the_lake(self, market: Small) -> None:
        with serving(market, listings_feed="service") as client:
            old = (datetime.now(UTC) - timedelta(minutes=6)).isoformat()
            assert "import it instead" in problem(put(client, "bag", 1, updated_at=old), 422, "updated_at")
            told = client.delete("/listings/bag", params={"updated_at": old})
            assert "import it instead" in problem(told, 422, "updated_at")


class TestFaults:
    def test_what_was_told_before_a_crash_is_indexed_after_it(self, market: Small) -> None:
        """The first service cannot reach the cluster, and ends: the listing is in the log alone."""
        away = {"elasticsearch_url": "http://127.0.0.1:1"}
        with TestClient(create_app(service_of(market, **away)), headers=AS_SHOP) as client:
            assert put(client, "bag-10", 110).status_code == 202
            assert waiting(client) > 0
        assert not market.search_index.versions(market.live.name, ["bag-10"])
        with serving(market) as client:
            until = time.monotonic() + PATIENCE_S
            while "bag-10" not in market.search_index.versions(market.live.name, ["bag-10"]):
                assert time.monotonic() < until
                time.sleep(0.05)
            assert found(client, market, 110) == "bag-10"

    def test_a_photo_that_is_gone_sets_its_listing_aside_and_nothing_else(
        self, client: TestClient, market: Small
    ) -> None:
        service: Service = client.app.state.service  # type: ignore[attr-defined]
        kept = client.post("/photos", content=photo(111)).json()["image_uri"]
        real = service.listings._indexer
        assert real is not None
        object.__setattr__(real, "images", replace(real.images, allowed=("/nowhere",)))
        try:
            client.put("/listings/bag-11", json={**BAG, "image_uri": kept})
            client.delete("/listings/bag-2")
            settled(client)
        finally:
            object.__setattr__(real, "images", service.images)
        assert not market.search_index.versions(market.live.name, ["bag-11"])
        [(_, status)] = market.search_index.versions(market.live.name, ["bag-2"]).values()
        assert status == "deleted"
        lines = "".join(
            path.read_text()
            for path in Path(market.settings.lake, "logs", "listings-set-aside").rglob("*")
            if path.is_file()
        )
        [entry] = [json.loads(line) for line in lines.splitlines()]
        assert entry["listing"]["item_id"] == "bag-11"
        assert "outside the folders" in entry["reason"]

    def test_whatever_goes_wrong_they_wait_and_it_is_said(self, market: Small) -> None:
        service = service_of(market)
        connect, failed = service.listings._connect, threading.Event()

        def fail_first() -> Indexer:
            service.listings._connect = connect
            failed.set()
            raise OSError("no space left on device")

        service.listings._connect = fail_first
        with answering(service, headers=AS_SHOP) as client:
            put(client, "bag-13", 113)
            assert failed.wait(PATIENCE_S)
            until = time.monotonic() + PATIENCE_S
            while not [one for one in client.get("/health/ready").json()["problems"] if "no space left" in one]:
                assert waiting(client)
                assert time.monotonic() < until
            settled(client)
            assert found(client, market, 113) == "bag-13"
            assert client.get("/health/ready").json()["problems"] == []

    def test_too_many_that_wait_are_refused_before_anything_is_kept(self, market: Small) -> None:
        service = service_of(market, elasticsearch_url="http://127.0.0.1:1")
        service.listings._most = 0
        with TestClient(create_app(service), headers=AS_SHOP) as client:
            answer = put(client, "bag-12", 112)
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) >= 1
        told = ListingLog.of(Lake(market.settings.lake)).not_landed(datetime.now(UTC))
        assert "bag-12" not in {one.item_id for one in told}


class TestLog:
    def test_lands_as_the_windows_listings(self, client: TestClient, market: Small) -> None:
        put(client, "bag-21", 121, price=10)
        put(client, "bag-21", 121, price=11)
        settled(client)
        log, lake = ListingLog.of(Lake(market.settings.lake)), Lake(market.settings.lake)
        now = datetime.now(UTC).replace(microsecond=0)
        window = Window(now - timedelta(hours=1), now + timedelta(hours=1))
        later = window.end + timedelta(minutes=10)
        count = log.land(window, later)
        rows = [row for batch in lake.read(LISTINGS, [window]) for row in batch.to_pylist()]
        assert len(rows) == count
        assert {row["price"] for row in rows if row["item_id"] == "bag-21"} == {10, 11}
        before = lake.manifest(LISTINGS, window)
        assert log.land(window, later) == count
        assert lake.manifest(LISTINGS, window) == before
