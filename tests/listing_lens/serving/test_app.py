"""The search service over HTTP, on a real node: what it answers, what it refuses and how, what it keeps."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import ASGITransport, AsyncClient, Response
from PIL import Image
from served import AS_SHOP, answering, problem, service_of
from small_index import IDS, Small
from starlette.types import Receive, Scope, Send

from listing_lens.errors import LensError
from listing_lens.lake.windows import Lake
from listing_lens.serving.app import Shedding, create_app
from listing_lens.serving.limits import Budget, Lag
from listing_lens.serving.query_embedder import Generator, InProcess, QueryEmbedder
from listing_lens.serving.service import Service
from models.embedder import EmbedderCard
from models.encoders.runtime import Runtime

EVENT = {"kind": "tap", "search_id": "0" * 32, "item_id": "m011"}


@contextmanager
def serving(small: Small, generator: Generator | None = None, **changed: Any) -> Iterator[TestClient]:
    with answering(service_of(small, generator, **changed)) as client:
        yield client


@pytest.fixture(scope="module")
def client(small: Small) -> Iterator[TestClient]:
    with serving(small) as client:
        yield client


def photo_of(small: Small, item_id: str) -> bytes:
    return small.photo(item_id).read_bytes()


def found(answer: Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [one["item_id"] for one in answer.json()["results"]]


def as_format(data: bytes, kind: str, **options: Any) -> bytes:
    converted = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.save(converted, kind, **options)
    return converted.getvalue()


class TestSearch:
    def test_finds_the_photos_own_listing_and_says_where(self, client: TestClient, small: Small) -> None:
        answer = client.post("/search", params={"k": 3}, content=photo_of(small, "m011"))
        assert found(answer)[0] == "m011"
        body = answer.json()
        assert (body["index"], body["space"]) == (small.live.name, small.live.card.space)
        scores = [one["score"] for one in body["results"]]
        assert scores == sorted(scores, reverse=True)
        assert scores[0] == pytest.approx(1, abs=1e-4)
        assert body["notices"] == []
        assert set(body["took_ms"]) == {"upload", "decode", "embed", "search"}

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "HEIF"])
    def test_takes_every_format_as_body_or_form(self, client: TestClient, small: Small, kind: str) -> None:
        data = as_format(photo_of(small, "m011"), kind, quality=95)
        assert found(client.post("/search", content=data))[0] == "m011"
        assert found(client.post("/search", files={"photo": ("a photo", data)}))[0] == "m011"

    def test_filters_within_the_search(self, client: TestClient, small: Small) -> None:
        everything = found(client.post("/search", params={"k": 20}, content=photo_of(small, "m011")))
        assert sorted(everything) == IDS
        none = client.post("/search", params={"price_min": 10**9}, content=photo_of(small, "m011"))
        assert found(none) == []
        assert none.json()["notices"] == ["nothing_found"]

    def test_a_crop_is_searched_with_instead_of_the_photo(self, client: TestClient, small: Small) -> None:
        """Two photos side by side: each half finds its own listing."""
        with Image.open(small.photo("m003")) as left, Image.open(small.photo("m011")) as right:
            both = Image.new("RGB", (left.width + right.width, left.height))
            both.paste(left, (0, 0))
            both.paste(right, (left.width, 0))
        data = io.BytesIO()
        both.save(data, "PNG")
        for crop, item_id in (("0,0,0.5,1", "m003"), ("0.5,0,1,1", "m011")):
            assert found(client.post("/search", params={"crop": crop}, content=data.getvalue()))[0] == item_id

    def test_says_when_there_are_fewer_than_asked_for(self, client: TestClient, small: Small) -> None:
        answer = client.post("/search", params={"k": 50}, content=photo_of(small, "m011"))
        assert answer.json()["notices"] == ["fewer_than_asked"]

    @pytest.mark.parametrize(
        ("parameters", "field"),
        [
            pytest.param({"k": 0}, "k", id="k too small"),
            pytest.param({"k": 101}, "k", id="k too large"),
            pytest.param({"k": "many"}, "k", id="k not a number"),
            pytest.param({"price_min": "cheap"}, "price_min", id="a price that is none"),
            pytest.param({"price_min": 5, "price_max": 4}, "price_max", id="prices the wrong way round"),
            pytest.param({"status": "stolen"}, "status", id="an unknown status"),
            pytest.param({"status": "sold"}, "status", id="a status that is not searched"),
            pytest.param({"category": ""}, "category", id="an empty category"),
            pytest.param({"category": "x" * 33_000}, "category", id="an endless category"),
            pytest.param({"crop": "a,b,c,d"}, "crop", id="a crop that is none"),
            pytest.param({"crop": "0.5,0,0.4,1"}, "crop", id="a crop inside out"),
            pytest.param({"crop": "nan,0,1,1"}, "crop", id="a crop of no number"),
            pytest.param({"crop": "0,0,0.001,0.001"}, "crop", id="a crop of nothing"),
        ],
    )
    def test_names_the_parameter_that_is_at_fault(
        self, client: TestClient, small: Small, parameters: dict[str, Any], field: str
    ) -> None:
        assert field in problem(client.post("/search", params=parameters, content=photo_of(small, "m011")), 422, field)

    @pytest.mark.parametrize(
        ("data", "says"),
        [
            pytest.param(b"", "empty file", id="nothing"),
            pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image", id="SVG"),
            pytest.param(b"\xff\xd8\xff\xe0" + bytes(100), "not an image", id="a damaged JPEG"),
        ],
    )
    def test_refuses_what_is_no_photo(self, client: TestClient, data: bytes, says: str) -> None:
        assert says in problem(client.post("/search", content=data), 422, "photo")
        assert says in problem(client.post("/search", files={"photo": ("a photo", data)}), 422, "photo")

    def test_refuses_a_form_without_a_photo(self, client: TestClient) -> None:
        assert "no file of this name" in problem(client.post("/search", files={"image": b"x"}), 422, "photo")
        broken = client.post("/search", content=b"--x", headers={"Content-Type": "multipart/form-data; boundary=y"})
        problem(broken, 422, "photo")

    def test_refuses_photos_that_are_too_large(self, small: Small) -> None:
        data = photo_of(small, "m011")
        with serving(small, image_max_bytes=len(data) - 1) as client:
            assert "more than" in problem(client.post("/search", content=data), 413, "photo")
            assert "exceed the limit" in problem(client.post("/search", files={"photo": ("a", data)}), 413, "photo")
            # Nobody has to believe what a caller says of its length.
            endless = (bytes(1000) for _ in range(10_000))
            assert client.post("/search", content=endless).status_code == 413
        with serving(small, image_max_pixels=100) as client:
            assert "exceed the limit of 100" in problem(client.post("/search", content=data), 413, "photo")


class TestSimilar:
    def test_leaves_the_item_itself_out(self, client: TestClient) -> None:
        answer = client.get("/items/m011/similar", params={"k": 20})
        assert sorted([*found(answer), "m011"]) == IDS
        assert answer.json()["item"]["item_id"] == "m011"
        assert set(answer.json()["took_ms"]) == {"lookup", "search", "rank"}

    def test_explains_each_place(self, client: TestClient) -> None:
        answer = client.get("/items/m011/similar", params={"explain": True})
        for one in answer.json()["results"]:
            why = one["why"]
            expected = 0.8 * why["visual_similarity"] + 0.2 * why["category_similarity"]
            assert one["score"] == pytest.approx(expected)
            assert f"{one['score']:.4f} = 0.8 × visual similarity" in why["formula"]
            assert why["price_ratio"] == 1
        assert client.get("/items/m011/similar").json()["results"][0]["why"] is None

    def test_by_sight_alone_is_the_order_of_a_search_with_the_photo(self, client: TestClient, small: Small) -> None:
        alone = {"k": 10, "by_price": False, "by_category": False}
        similar = found(client.get("/items/m011/similar", params=alone))
        searched = found(client.post("/search", params={"k": 11}, content=photo_of(small, "m011")))
        assert similar == searched[1:]

    @pytest.mark.parametrize("item_id", ["nobody", "a b", "日本", "a%2Fb", "%00"])
    def test_refuses_an_unknown_item(self, client: TestClient, item_id: str) -> None:
        assert "there is no item" in problem(client.get(f"/items/{item_id}/similar"), 404, "item_id")

    def test_refuses_an_id_that_no_item_can_have(self, client: TestClient) -> None:
        problem(client.get(f"/items/{'x' * 513}/similar"), 422, "item_id")
        problem(client.get(f"/items/{'日' * 200}/similar"), 422, "item_id")


class TestItems:
    def test_the_newest_are_listed(self, client: TestClient) -> None:
        assert len(found(client.get("/items", params={"k": 5}))) == 5

    def test_the_newest_may_be_filtered(self, client: TestClient) -> None:
        assert len(found(client.get("/items", params={"k": 5, "category": ["A", "B"], "price_max": 1200}))) == 5
        assert found(client.get("/items", params={"category": "B"})) == []
        assert found(client.get("/items", params={"price_min": 1201})) == []
        problem(client.get("/items", params={"status": "sold"}), 422, "status")

    def test_a_listings_photo_is_small_and_tells_nothing(self, client: TestClient) -> None:
        answer = client.get("/items/m011/photo")
        assert answer.headers["content-type"] == "image/jpeg"
        with Image.open(io.BytesIO(answer.content)) as image:
            assert max(image.size) <= 480
            assert not image.getexif()
        problem(client.get("/items/nobody/photo"), 404, "item_id")

    def test_a_photo_outside_the_catalogs_folders_is_not_shown(
        self, client: TestClient, small: Small, tmp_path: Path
    ) -> None:
        outside = tmp_path / "private.jpg"
        outside.write_bytes(photo_of(small, "m011"))
        document = {"image_uri": str(outside)}
        update = small.search_index.client.update
        before = small.search_index.client.get(index=small.live.name, id="m005")["_source"]["image_uri"]
        update(index=small.live.name, id="m005", doc=document)
        try:
            problem(client.get("/items/m005/photo"), 404, "item_id")
        finally:
            update(index=small.live.name, id="m005", doc={"image_uri": before}, refresh=True)


class TestEvents:
    def test_are_for_those_who_have_a_key(self, client: TestClient) -> None:
        told = {"events": [EVENT]}
        assert "need an API key" in problem(client.post("/events", json=told), 403, "authorization")
        wrong = client.post("/events", json=told, headers={"Authorization": "Bearer guess"})
        assert "not a key" in problem(wrong, 401, "authorization")
        assert client.post("/events", json=told, headers=AS_SHOP).json() == {"stored": 1}

    def test_or_for_all_where_the_settings_say_so(self, small: Small) -> None:
        with serving(small, search_open_events=True) as client:
            assert client.post("/events", json={"events": [EVENT]}).status_code == 202

    def test_or_for_users_that_a_proxy_has_identified(self, small: Small) -> None:
        trusting = {"search_user_header": "X-User", "search_proxies": ("127.0.0.0/8",)}
        told = {"events": [EVENT]}
        with serving(small, **trusting) as client:
            # The test's client has no address; only a proxy's word counts.
            assert client.post("/events", json=told, headers={"X-User": "ann"}).status_code == 403
        service = Service.of(small.settings.model_copy(update={**trusting, "search_rates": {}}))
        with TestClient(create_app(service), client=("127.0.0.1", 5)) as client:
            assert client.post("/events", json=told, headers={"X-User": "ann"}).status_code == 202

    @pytest.mark.parametrize(
        ("event", "field"),
        [
            ({**EVENT, "kind": "glance"}, "events.0.kind"),
            ({**EVENT, "search_id": "../../etc"}, "events.0.search_id"),
            ({**EVENT, "item_id": ""}, "events.0.item_id"),
            ({**EVENT, "user": "ann"}, "events.0.user"),
        ],
    )
    def test_that_are_not_valid_are_refused_by_field(
        self, client: TestClient, event: dict[str, str], field: str
    ) -> None:
        problem(client.post("/events", json={"events": [event]}, headers=AS_SHOP), 422, field)

    def test_are_in_the_lake_when_they_are_answered(self, client: TestClient, small: Small) -> None:
        event = {**EVENT, "search_id": "1" * 32}
        client.post("/events", json={"events": [event]}, headers=AS_SHOP)
        assert [one for one in kept(small) if one["search_id"] == "1" * 32 and one["kind"] == "tap"]


class TestWhatIsKept:
    def test_a_search_with_a_photo_that_tells_no_place(self, small: Small) -> None:
        exif = Image.Exif()
        exif.get_ifd(0x8825)[1] = "N"
        exif[0x010F] = "a maker"
        data = as_format(photo_of(small, "m011"), "JPEG", exif=exif, comment=b"at home")
        assert b"a maker" in data
        with serving(small) as client:
            answer = client.post("/search", params={"k": 2, "price_min": 1}, content=data).json()
            search_id = answer["search_id"]
            # At the end of the service what was noted is written.
        with serving(small) as client:
            kept_photo = client.get(f"/searches/{search_id}/photo")
            assert kept_photo.status_code == 200
            with Image.open(io.BytesIO(kept_photo.content)) as image:
                assert not image.getexif()
                assert "comment" not in image.info
            assert "not kept" in problem(client.get(f"/searches/{'0' * 32}/photo"), 404, "search_id")
            problem(client.get("/searches/..%2F..%2Fetc/photo"), 404)
        (entry,) = [one for one in kept(small) if one["search_id"] == search_id]
        assert entry["shown"] == [one["item_id"] for one in answer["results"]]
        assert (entry["surface"], entry["k"], entry["filters"]["least_price"]) == ("photo", 2, 1)
        assert (entry["index"], entry["space"]) == (small.live.name, small.live.card.space)

    @pytest.mark.parametrize(
        ("request_", "settings"),
        [
            pytest.param({"params": {"keep": False}}, {}, id="its caller does not want it"),
            pytest.param({"headers": {"Sec-GPC": "1"}}, {}, id="the browser says so"),
            pytest.param({}, {"search_log_days": 0}, id="the settings say so"),
        ],
    )
    def test_nothing_when(self, small: Small, request_: dict[str, Any], settings: dict[str, Any]) -> None:
        before = len(list(kept(small)))
        with serving(small, **settings) as client:
            answers = [
                client.post("/search", content=photo_of(small, "m011"), **request_),
                client.get("/items/m011/similar", **request_),
            ]
        assert [answer.json()["search_id"] for answer in answers] == [None, None]
        assert len(list(kept(small))) == before


def kept(small: Small) -> Iterator[dict[str, Any]]:
    """The entries of the log."""
    for path in sorted(Path(small.settings.lake, "logs", "searches").rglob("*.jsonl")):
        yield from (json.loads(line) for line in path.read_text().splitlines())


class _Slow:
    """A generator whose loading is let through by hand, or fails."""

    def __init__(self, small: Small) -> None:
        self._real = InProcess(Lake(small.settings.lake), Runtime())
        self.failing: set[str] = set()

    async def load(self, card: EmbedderCard) -> QueryEmbedder:
        if card.space in self.failing:
            raise LensError("its weights are gone")
        return await self._real.load(card)

    async def close(self) -> None:
        await self._real.close()


class TestFollowing:
    def test_a_swap_brings_the_index_and_its_embedder_at_once(self, small: Small) -> None:
        data = photo_of(small, "m011")
        with serving(small) as client:
            service: Service = client.app.state.service  # type: ignore[attr-defined]
            before = client.post("/search", content=data).json()
            small.search_index.swap(small.other.name)
            try:
                # Not looked yet: the index before, in its own space.
                between = client.post("/search", content=data).json()
                assert client.portal is not None
                client.portal.call(service.follower.step)
                after = client.post("/search", content=data).json()
            finally:
                small.search_index.swap(small.live.name)
        assert [answer["index"] for answer in (before, between, after)] == [
            *(small.live.name,) * 2,
            small.other.name,
        ]
        for answer in (before, between, after):
            # Only within one space is the photo's own listing as near as can be.
            assert answer["results"][0]["item_id"] == "m011"
            assert answer["results"][0]["score"] == pytest.approx(1, abs=1e-4)

    def test_an_embedder_that_cannot_be_loaded_keeps_the_one_before_and_says_so(self, small: Small) -> None:
        generator = _Slow(small)
        generator.failing = {small.other.card.space}
        with serving(small, generator) as client:
            service: Service = client.app.state.service  # type: ignore[attr-defined]
            assert client.portal is not None
            small.search_index.swap(small.other.name)
            try:
                client.portal.call(service.follower.step)
                answer = client.post("/search", content=photo_of(small, "m011")).json()
                health = client.get("/health/ready")
                generator.failing = set()
                client.portal.call(service.follower.step)
                later = client.post("/search", content=photo_of(small, "m011")).json()
            finally:
                small.search_index.swap(small.live.name)
        assert (answer["index"], later["index"]) == (small.live.name, small.other.name)
        assert health.status_code == 200
        (says,) = health.json()["problems"]
        assert "cannot be loaded, so the one before is still searched: its weights are gone" in says

    def test_there_may_be_nothing_to_search_yet(self, small: Small) -> None:
        with serving(small, alias="test-nothing") as client:
            answer = client.post("/search", content=photo_of(small, "m011"))
            assert "points to no index yet" in problem(answer, 503)
            assert int(answer.headers["retry-after"]) >= 1
            assert client.get("/health/live").status_code == 200
            health = client.get("/health/ready")
            assert (health.status_code, health.json()["state"]) == (503, "nothing_to_search")


class TestDegraded:
    def test_a_cluster_that_is_away_is_said_and_not_asked_on_and_on(self, small: Small) -> None:
        data = photo_of(small, "m011")
        with serving(small) as client:
            service: Service = client.app.state.service  # type: ignore[attr-defined]
            away = replace(service, reader=Service.of(_away(small)).reader)
            client.app.state.service = away  # type: ignore[attr-defined]
            for _ in range(away.reader.breaker.failures_to_open):
                assert "cannot be reached" in problem(client.post("/search", content=data), 503)
            assert away.reader.breaker.is_open
            refused = client.get("/items/m011/similar")
            assert "does not answer" in problem(refused, 503)
            assert int(refused.headers["retry-after"]) >= 1
            health = client.get("/health/ready")
            assert (health.status_code, health.json()["state"]) == (503, "unavailable")
            assert "lens_breaker_open 1.0" in client.get("/metrics").text
            asyncio.run(away.reader.close())

    def test_a_search_whose_time_is_over_is_refused(self, small: Small) -> None:
        with serving(small, search_budget_s=1e-6) as client:
            answer = client.post("/search", content=photo_of(small, "m011"))
            assert answer.status_code in (429, 503)
            assert int(answer.headers["retry-after"]) >= 1

    def test_a_process_that_is_late_answers_a_few_and_says_how_it_is(self) -> None:
        """Two requests are held inside; a third is one too many while the process is late."""

        async def story() -> None:
            held, lag = asyncio.Event(), Lag(0.1)

            async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
                await held.wait()
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b""})

            transport = ASGITransport(Shedding(app, lag, few=2))
            async with AsyncClient(transport=transport, base_url="http://service") as client:
                lag.now_s = 0.2
                inside = [asyncio.create_task(client.get("/search")) for _ in range(2)]
                await asyncio.sleep(0)
                inside.append(asyncio.create_task(client.get("/health/live")))
                refused = await client.get("/search")
                assert "busy" in problem(refused, 429)
                assert refused.headers["retry-after"] == "1"
                lag.now_s = 0.05
                inside.append(asyncio.create_task(client.get("/search")))
                held.set()
                assert [answer.status_code for answer in await asyncio.gather(*inside)] == [200] * 4

        asyncio.run(story())

    def test_a_caller_who_asks_too_often_is_told_when_to_come_back(self, small: Small) -> None:
        with serving(small, search_rates={"similar": "2/hour"}) as client:
            assert [client.get("/items/m011/similar").status_code for _ in range(2)] == [200, 200]
            answer = client.get("/items/m011/similar")
            assert "more than 2 per 1 hour for similar" in problem(answer, 429)
            assert int(answer.headers["retry-after"]) > 60
            # Each caller has limits of its own.
            assert client.get("/items/m011/similar", headers=AS_SHOP).status_code == 200


def _away(small: Small) -> Any:
    return small.settings.model_copy(update={"elasticsearch_url": "http://127.0.0.1:1"})


class TestAnyRequest:
    def test_what_does_not_exist_is_a_problem_too(self, client: TestClient) -> None:
        problem(client.get("/nothing"), 404)
        problem(client.put("/search"), 405)
        problem(client.get("/web/../../settings.py"), 404)
        # Nor a page that would have a browser run somebody else's scripts.
        problem(client.get("/docs"), 404)
        problem(client.get("/web/%2e%2e/app.py"), 404)

    def test_a_body_larger_than_any_photo_is_refused(self, small: Small) -> None:
        with serving(small, image_max_bytes=1000) as client:
            told = {"events": [{**EVENT, "item_id": "x" * 100_000}]}
            assert "more than" in problem(client.post("/events", json=told, headers=AS_SHOP), 413)

    def test_the_page_and_its_files_come_with_a_policy(self, client: TestClient) -> None:
        for path, kind in (("/", "text/html"), ("/web/main.js", "javascript"), ("/web/style.css", "text/css")):
            answer = client.get(path)
            assert answer.status_code == 200
            assert kind in answer.headers["content-type"]
            assert "script-src 'self'" in answer.headers["content-security-policy"]
            assert "unsafe" not in answer.headers["content-security-policy"]

    def test_metrics_name_operations_stages_and_the_space(self, client: TestClient, small: Small) -> None:
        client.post("/search", content=photo_of(small, "m011"))
        text = client.get("/metrics").text
        assert 'lens_requests_total{operation="POST /search",status="200"}' in text
        assert 'lens_stage_seconds_count{stage="embed"}' in text
        assert f'lens_live{{index="{small.live.name}",space="{small.live.card.space}"}} 1.0' in text

    def test_canaries_say_how_much_is_found(self, client: TestClient) -> None:
        service: Service = client.app.state.service  # type: ignore[attr-defined]
        assert client.portal is not None
        assert client.portal.call(service.canaries.measure, service.follower.require()) == 1
        assert "lens_canary_recall 1.0" in client.get("/metrics").text
        assert Budget.of(1).left > 0
