"""Searches by words, by photo and words, and by several photos: each finds what its parts weigh together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from httpx import Response
from numpy.typing import NDArray
from PIL import Image
from served import answering, problem, service_of
from small_index import IDS, Small, small_index

from listing_lens.embedding.embedder import Embedder, TextEmbedder
from listing_lens.lake.searches import search_log
from listing_lens.lake.windows import Lake
from models.queries import QueryVectors

WORDS = "a red bag"


@pytest.fixture(scope="module")
def client(small: Small) -> Iterator[TestClient]:
    with answering(service_of(small)) as client:
        yield client


def photo(small: Small, item_id: str) -> bytes:
    return small.photo(item_id).read_bytes()


def form(small: Small, *item_ids: str) -> list[tuple[str, tuple[str, bytes]]]:
    return [("photo", (item_id, photo(small, item_id))) for item_id in item_ids]


def found(answer: Response) -> list[tuple[str, float]]:
    assert answer.status_code == 200, answer.text
    return [(one["item_id"], pytest.approx(one["score"], abs=1e-4)) for one in answer.json()["results"]]


def text_vector(small: Small, text: str = WORDS) -> NDArray[np.float32]:
    return TextEmbedder.load(small.live.card, Lake(small.settings.lake)).embed([text])[0]


def photo_vectors(small: Small, item_ids: Sequence[str]) -> NDArray[np.float32]:
    images = [Image.open(small.photo(item_id)).convert("RGB") for item_id in item_ids]
    return Embedder.load(small.live.card, Lake(small.settings.lake)).embed(images)


def nearest(small: Small, vector: NDArray[np.float32], k: int = 20) -> list[tuple[str, float]]:
    return [(hit.item_id, hit.score) for hit in small.search_index.search(small.live, vector, k)]


class TestWords:
    def test_find_what_is_nearest_to_them(self, client: TestClient, small: Small) -> None:
        answer = client.get("/search", params={"text": f"  {WORDS}  ", "k": 20})
        assert found(answer) == nearest(small, text_vector(small))
        body = answer.json()
        assert (body["index"], body["space"]) == (small.live.name, small.live.card.space)
        assert set(body["took_ms"]) == {"embed", "search"}

    def test_with_filters(self, client: TestClient) -> None:
        assert found(client.get("/search", params={"text": WORDS, "price_min": 10**9})) == []

    @pytest.mark.parametrize("parameters", [{}, {"text": ""}, {"text": "  \t"}, {"text": "x" * 1001}])
    def test_there_must_be_some_and_not_a_book(self, client: TestClient, parameters: dict[str, str]) -> None:
        problem(client.get("/search", params=parameters), 422, "text")

    @pytest.mark.parametrize("text", ["\x00", "🧣", "שלום", "' OR 1=1", "\ud7ff", "a" * 1000])
    def test_may_be_any(self, client: TestClient, text: str) -> None:
        assert len(found(client.get("/search", params={"text": text}))) == 20

    def test_are_switched_off_by_a_setting(self, small: Small) -> None:
        with answering(service_of(small, search_text=False)) as client:
            assert "switched off" in problem(client.get("/search", params={"text": WORDS}), 422, "text")
            refused = client.post("/search", params={"text": WORDS}, content=photo(small, "m011"))
            assert "switched off" in problem(refused, 422, "text")
            assert len(found(client.post("/search", content=photo(small, "m011")))) == 20

    def test_are_nothing_to_an_encoder_of_images_alone(self, tmp_path: Path, elasticsearch_url: str) -> None:
        with (
            small_index(tmp_path, elasticsearch_url, Path("pixels:4")) as thumbnails,
            answering(service_of(thumbnails)) as client,
        ):
            assert "knows no words" in problem(client.get("/search", params={"text": WORDS}), 422, "text")
            assert found(client.post("/search", content=photo(thumbnails, "m011")))[0][0] == "m011"

    def test_follow_the_index_to_another_space(self, small: Small) -> None:
        with answering(service_of(small)) as client:
            before = found(client.get("/search", params={"text": WORDS}))
            small.search_index.swap(small.other.name)
            try:
                assert client.portal is not None
                client.portal.call(client.app.state.service.follower.step)  # type: ignore[attr-defined]
                answer = client.get("/search", params={"text": WORDS})
            finally:
                small.search_index.swap(small.live.name)
            assert answer.json()["space"] == small.other.card.space
            vector = TextEmbedder.load(small.other.card, Lake(small.settings.lake)).embed([WORDS])[0]
            hits = small.search_index.search(small.other, vector, 20)
            assert found(answer) == [(hit.item_id, hit.score) for hit in hits]
            assert found(answer) != before


class TestPhotoAndWords:
    @pytest.mark.parametrize("weight", [None, 0.0, 0.2, 1.0])
    def test_weigh_together(self, client: TestClient, small: Small, weight: float | None) -> None:
        parameters: dict[str, Any] = {"text": WORDS} if weight is None else {"text": WORDS, "text_weight": weight}
        answer = client.post("/search", params=parameters, content=photo(small, "m011"))
        query = QueryVectors(photo_vectors(small, ["m011"]), text_vector(small))
        assert found(answer) == nearest(small, query.together(0.7 if weight is None else weight))

    def test_by_the_settings_weight_unless_told_otherwise(self, small: Small) -> None:
        with answering(service_of(small, search_text_weight=0.9)) as client:
            answer = client.post("/search", params={"text": WORDS}, content=photo(small, "m011"))
        query = QueryVectors(photo_vectors(small, ["m011"]), text_vector(small))
        assert found(answer) == nearest(small, query.together(0.9))

    @pytest.mark.parametrize("weight", ["-0.1", "1.1", "nan", "inf", "heavy"])
    def test_by_no_other_weight(self, client: TestClient, small: Small, weight: str) -> None:
        refused = client.post("/search", params={"text": WORDS, "text_weight": weight}, content=photo(small, "m011"))
        problem(refused, 422, "text_weight")


class TestSeveralPhotos:
    def test_find_what_is_nearest_to_their_mean(self, client: TestClient, small: Small) -> None:
        # Two photos are equally like their mean.
        of_one = ["m003", "m005", "m011"]
        answer = client.post("/search", files=form(small, *of_one))
        assert found(answer) == nearest(small, QueryVectors(photo_vectors(small, of_one)).together(0))

    def test_of_which_one_is_none_name_the_field(self, client: TestClient, small: Small) -> None:
        problem(client.post("/search", files=[*form(small, "m003"), ("photo", ("x", b"none"))]), 422, "photo")

    def test_are_five_at_most(self, client: TestClient, small: Small) -> None:
        assert len(found(client.post("/search", files=form(small, *IDS[:5])))) == 20
        assert "Too many files" in problem(client.post("/search", files=form(small, *IDS[:6])), 422, "photo")

    def test_are_not_cropped(self, client: TestClient, small: Small) -> None:
        refused = client.post("/search", params={"crop": "0,0,1,1"}, files=form(small, "m003", "m011"))
        assert "there are several" in problem(refused, 422, "crop")

    def test_may_be_as_large_as_one_together(self, small: Small) -> None:
        with answering(service_of(small, image_max_bytes=100_000)) as client:
            large = [("photo", ("x", bytes(90_000))) for _ in range(2)]
            problem(client.post("/search", files=large), 413, "photo")
            assert "not an image" in problem(client.post("/search", files=large[:1]), 422, "photo")


def test_what_is_kept_is_what_was_asked(small: Small) -> None:
    with answering(service_of(small)) as client:
        by_text = client.get("/search", params={"text": WORDS}).json()["search_id"]
        parameters = {"text": WORDS, "text_weight": 0.25}
        by_all = client.post("/search", params=parameters, files=form(small, "m003", "m011")).json()["search_id"]
        not_kept = client.get("/search", params={"text": WORDS, "keep": False}).json()["search_id"]
    assert not_kept is None
    log = search_log(Lake(small.settings.lake))
    entries = {entry["search_id"]: entry for path in Path(log.folder).rglob("*.jsonl") for entry in log.read(str(path))}
    assert {name: entries[by_text].get(name) for name in ("surface", "text", "photos", "text_weight")} == {
        "surface": "text",
        "text": WORDS,
        "photos": 0,
        "text_weight": None,
    }
    assert {name: entries[by_all].get(name) for name in ("surface", "text", "photos", "text_weight")} == {
        "surface": "photo",
        "text": WORDS,
        "photos": 2,
        "text_weight": 0.25,
    }
    photos = sorted(path.name for path in Path(log.folder).rglob(f"{by_all}*.jpg"))
    assert photos == [f"{by_all}-1.jpg", f"{by_all}.jpg"]
