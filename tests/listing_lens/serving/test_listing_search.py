"""Search by photos and words on a real node: the query and the index are of one space whatever happens, and a photo is a photo.

A wrong space gives no error, only wrong results; a page shows what strangers uploaded, from addresses that they chose. Both
are held here without any job: the index is written by hand.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from small_index import Small
from tiny import image_root, photo

from listing_lens.embedding.embedder import Embedder, TextEmbedder
from listing_lens.errors import LensError
from listing_lens.lake.windows import Lake
from listing_lens.serving.listing_search import SearchResult, as_page, search_listings
from models.embedder import EmbedderCard
from models.encoders.runtime import Runtime


def test_a_photo_finds_its_own_listing_in_the_live_index(small: Small) -> None:
    result = search_listings([small.photo("m011")], "", 3, small.settings)
    assert result.index == small.live.name
    assert [photo.name for photo in result.photos] == ["m011.jpg"]
    assert result.hits[0].item_id == "m011"
    assert len(result.hits) == 3
    scores = [hit.score for hit in result.hits]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(1, abs=1e-4)


def test_a_swap_during_a_search_does_not_mix_two_spaces(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Embedder.load

    def load_and_swap(card: EmbedderCard, lake: Lake, runtime: Runtime) -> Embedder:
        small.search_index.swap(small.other.name)
        return load(card, lake, runtime)

    monkeypatch.setattr(Embedder, "load", load_and_swap)
    try:
        during = search_listings([small.photo("m011")], "", 1, small.settings)
        after = search_listings([small.photo("m011")], "", 1, small.settings)
    finally:
        small.search_index.swap(small.live.name)
    assert (during.index, after.index) == (small.live.name, small.other.name)
    # Only within one space is the photo's own listing as near as can be.
    assert [result.hits[0].item_id for result in (during, after)] == ["m011", "m011"]
    assert [result.hits[0].score for result in (during, after)] == pytest.approx([1, 1], abs=1e-4)


def test_a_photo_that_another_seller_took_with_a_turned_camera_is_upright(small: Small, tmp_path: Path) -> None:
    turned = tmp_path / "turned.jpg"
    with Image.open(small.photo("m011")) as image:
        exif = image.getexif()
        exif[0x0112] = 6  # to be shown turned to the right
        image.rotate(90, expand=True).save(turned, "JPEG", quality=95, exif=exif)
    assert search_listings([turned], "", 1, small.settings).hits[0].item_id == "m011"


@pytest.mark.parametrize(
    ("limits", "reason"),
    [({"image_max_bytes": 100}, "100"), ({"image_max_pixels": 100}, "100")],
    ids=["too many bytes", "too many pixels"],
)
def test_a_photo_over_the_limits_is_refused(small: Small, limits: dict[str, int], reason: str) -> None:
    path = small.photo("m011")
    with pytest.raises(LensError, match=f"photo {path} cannot be searched with: .*{reason}"):
        search_listings([path], "", 1, small.settings.model_copy(update=limits))


class TestWords:
    def test_alone_find_what_the_text_tower_makes_of_them(self, small: Small) -> None:
        result = search_listings([], " red shoes ", 5, small.settings)
        [vector] = TextEmbedder.load(small.live.card, Lake(small.settings.lake), Runtime()).embed(["red shoes"])
        assert result.hits == small.search_index.search(small.live, vector, 5)
        assert (result.text, list(result.photos)) == ("red shoes", [])

    def test_count_beside_a_photo_as_much_as_the_settings_say(self, small: Small) -> None:
        def found(photos: list[Path], text: str, weight: float) -> list[str]:
            settings = small.settings.model_copy(update={"search_text_weight": weight})
            return [hit.item_id for hit in search_listings(photos, text, 20, settings).hits]

        photo_path = small.photo("m011")
        alone, words = found([photo_path], "", 0.5), found([], "red shoes", 0.5)
        assert found([photo_path], "red shoes", 0.0) == alone
        assert found([photo_path], "red shoes", 1.0) == words
        assert found([photo_path], "red shoes", 0.5) not in (alone, words)

    def test_that_are_switched_off_are_refused(self, small: Small) -> None:
        settings = small.settings.model_copy(update={"search_text": False})
        with pytest.raises(LensError, match="switched off: set LENS_SEARCH_TEXT=true"):
            search_listings([small.photo("m011")], "red shoes", 1, settings)
        assert search_listings([small.photo("m011")], "", 1, settings).hits[0].item_id == "m011"


class TestSeveralPhotos:
    def test_of_one_item_find_what_is_like_all_of_them(self, small: Small) -> None:
        photos = [small.photo(item_id) for item_id in ("m003", "m011")]
        result = search_listings(photos, "", 20, small.settings)
        assert [photo.name for photo in result.photos] == ["m003.jpg", "m011.jpg"]
        # As like one as the other.
        scores = {hit.item_id: hit.score for hit in result.hits}
        assert scores["m003"] == pytest.approx(scores["m011"], abs=1e-4)

    def test_can_be_too_many(self, small: Small) -> None:
        with pytest.raises(LensError, match="6 photos are too many to search with: give 5 at most, of one item"):
            search_listings([small.photo("m011")] * 6, "", 1, small.settings)


@pytest.mark.parametrize("text", ["", "  "])
def test_nothing_to_search_with_is_refused(small: Small, text: str) -> None:
    with pytest.raises(LensError, match="give a photo, --text, or both"):
        search_listings([], text, 1, small.settings)


class TestPage:
    @staticmethod
    def found(small: Small, image_uri: str) -> SearchResult:
        """A result whose one hit has its photo there."""
        result = search_listings([small.photo("m011")], "", 1, small.settings)
        return replace(result, hits=[replace(result.hits[0], image_uri=image_uri)])

    def test_shows_the_query_and_the_listings(self, small: Small) -> None:
        page = as_page(search_listings([small.photo("m011")], "", 5, small.settings))
        assert page.count("data:image/jpeg;base64,") == 6
        assert small.live.name in page
        assert small.live.card.space in page

    def test_shows_all_photos_of_the_query_and_its_words(self, small: Small) -> None:
        photos = [small.photo("m003"), small.photo("m011")]
        page = as_page(search_listings(photos, "red shoes", 5, small.settings))
        assert page.count("data:image/jpeg;base64,") == 7
        assert "red shoes" in page

    def test_says_so_when_a_photo_is_gone(self, small: Small) -> None:
        gone = f"{image_root(Lake(small.settings.lake))}/gone.jpg"
        page = as_page(self.found(small, gone))
        assert page.count("data:image/jpeg;base64,") == 1
        assert "no photo" in page

    def test_reads_nothing_outside_the_catalogs_folders(self, small: Small, tmp_path: Path) -> None:
        outside = tmp_path / "private.jpg"
        outside.write_bytes(photo(1))
        page = as_page(self.found(small, str(outside)))
        assert page.count("data:image/jpeg;base64,") == 1
        assert "no photo" in page
