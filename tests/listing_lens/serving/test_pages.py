"""Pages: sellers write titles, and a page must show them as text; nothing on it comes from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from html.parser import HTMLParser

import pytest
from jinja2 import UndefinedError
from matplotlib.figure import Figure
from PIL import Image
from tiny import NOW

from listing_lens.lake.window import Window
from listing_lens.search.queries import Hit
from listing_lens.search.verification import Check, Verification
from listing_lens.serving.pages import QueryPhoto, ShownHit, evaluation_page, search_page, verification_page
from models.embedder import EmbedderCard
from models.metrics import METRICS
from models.registry import RegisteredEmbedder

HOSTILE = """<script>alert("1")</script>'"><img src=x onerror=alert(1)>&amp;{{ 7 * 7 }}"""
COUNTS = {"read": 12, "evaluated": 1234, "nothing_tapped": 3, "query_unreadable": 2, "item_not_embedded": 1}
MEANS = {f"{variant}/{metric}": 0.125 for variant in ("embedding", "projected") for metric in METRICS}


class Elements(HTMLParser):
    """What a browser would make of a page: its elements with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data.strip())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def hit(title: str, category: tuple[str, ...] = ("Fashion", "Coats")) -> Hit:
    return Hit("item-1", 0.98765, title, category, 12345, "on_sale", "/photos/1.jpg")


def searched(*hits: ShownHit, names: Sequence[str] = ("query.jpg",), text: str = "") -> str:
    photos = [QueryPhoto(name, Image.new("RGB", (30, 20), "red")) for name in names]
    return search_page(photos=photos, text=text, hits=hits, index="listings-x-1", space="x-pca3-1")


def evaluated(means: Mapping[str, float], counts: Mapping[str, int] = COUNTS) -> str:
    card = EmbedderCard(encoder_source="/m", encoder_id=HOSTILE, encoder_dims=768, projection_id="12345678", dims=128)
    window = Window.parse("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")
    return evaluation_page(
        window=window,
        embedder=RegisteredEmbedder(3, card),
        counts=counts,
        means={"by one photo": (1234, means), "by words": (66, means)},
        by_k=Figure(),
        by_dims=Figure(),
    )


def verified(*checks: Check, forced: tuple[str, ...] = (), repaired: str | None = None) -> str:
    verification = Verification(
        index="listings-x-1",
        space="x-pca3-1",
        table_version=7,
        began_at=NOW,
        ended_at=NOW + timedelta(minutes=3),
        checks=checks,
        forced=forced,
        repaired=repaired,
    )
    return verification_page(verification)


def test_hostile_text_stays_text() -> None:
    page = Elements(
        searched(ShownHit(hit(HOSTILE, (HOSTILE,)), Image.new("RGB", (9, 9))), names=[HOSTILE], text=HOSTILE)
    )
    assert not page.of("script")
    assert " ".join(page.text).count(HOSTILE) >= 6
    assert not [name for _, attributes in page.found for name in attributes if name.startswith("on")]
    assert [image["alt"] for image in page.of("img")] == ["the photo searched with", HOSTILE]


def test_hits_are_shown_in_order_with_their_figures() -> None:
    page = Elements(searched(ShownHit(hit("A coat"), None), ShownHit(hit("A hat"), None)))
    titles = [text for text in page.text if text in ("A coat", "A hat")]
    assert titles == ["A coat", "A hat"]
    assert {"¥12,345", "0.988", "Fashion › Coats", "2 listings that look like this"} <= set(page.text)


def test_what_was_searched_with_is_shown() -> None:
    both = Elements(searched(names=["front.jpg", "back.jpg"], text="in green"))
    assert len(both.of("img")) == 2
    assert {"“in green”", "front.jpg, back.jpg", "Search by front.jpg, back.jpg, in green · Listing Lens"} <= set(
        both.text
    )
    words = Elements(searched(names=(), text="red shoes"))
    assert not words.of("img")
    assert {"“red shoes”", "Search by red shoes · Listing Lens"} <= set(words.text)


def test_a_hit_without_a_photo_says_so() -> None:
    page = Elements(searched(ShownHit(hit("A coat"), None)))
    assert "no photo" in page.text
    assert len(page.of("img")) == 1


def test_no_hits_say_what_to_do() -> None:
    assert "lens index rebuild" in " ".join(Elements(searched()).text)


def test_photos_are_made_small_and_the_originals_stay() -> None:
    photo = Image.effect_noise((2000, 1500), 80).convert("RGB")
    page = searched(ShownHit(hit("A coat"), photo))
    assert photo.size == (2000, 1500)
    assert len(page) < 60_000


def test_an_evaluation_shows_means_and_what_was_left_out() -> None:
    page = Elements(evaluated(MEANS))
    assert not page.of("script")
    assert page.text.count("0.125") == 28
    assert [image["alt"] for image in page.of("img")] == [
        "nDCG, precision and recall by k",
        "nDCG@5 by the dimensions kept",
    ]
    assert {"nDCG@5", "P@1", "R@3", "Searches by one photo: means over 1,234 sessions"} <= set(page.text)
    assert {"12", "1300", "3", "2", "1"} <= set(page.text)


def test_a_figure_that_is_missing_is_an_error_and_not_a_blank() -> None:
    with pytest.raises(UndefinedError, match="recall@3"):
        evaluated({name: mean for name, mean in MEANS.items() if name != "projected/recall@3"})
    with pytest.raises(UndefinedError, match="nothing_tapped"):
        evaluated(MEANS, {name: count for name, count in COUNTS.items() if name != "nothing_tapped"})


def test_a_verification_says_of_each_check_how_it_went_in_words() -> None:
    page = Elements(
        verified(
            Check(
                name="recall", passed=False, says="few are found", measured=0.81234, threshold=0.9, examples=(HOSTILE,)
            ),
            Check(name="reconciled", passed=False, says="two differ", measured=2, threshold=0),
            Check(name="mapping", passed=True, says="all is well"),
            Check(name="ndcg", passed=None, says="left out"),
            forced=("reconciled",),
            repaired="3 items were written again",
        )
    )
    assert not page.of("script")
    assert {"✗ failed", "! forced", "✓ passed", "– left out"} <= set(page.text)
    assert {"0.8123", "≥ 0.9", "≤ 0", "few are found", "two differ", HOSTILE} <= set(page.text)
    assert "Repaired before: 3 items were written again." in page.text
    assert "recall: rebuild the index, with a larger ef_construction" in " ".join(page.text)
    assert "--force recall" in page.text


def test_a_verification_that_passed_needs_nothing_done() -> None:
    page = Elements(verified(Check(name="mapping", passed=True, says="all is well")))
    assert "What to do" not in page.text
    assert "✗ failed" not in page.text


@pytest.mark.parametrize(
    "page",
    [
        searched(ShownHit(hit("A coat"), Image.new("RGB", (9, 9)))),
        evaluated(MEANS),
        verified(Check(name="size", passed=False, says=HOSTILE)),
    ],
    ids=["search", "evaluation", "verification"],
)
def test_nothing_comes_from_elsewhere(page: str) -> None:
    elements = Elements(page)
    assert not elements.of("script")
    assert not elements.of("link")
    assert all((image["src"] or "").startswith("data:image/") for image in elements.of("img"))
    assert not re.search(r"url\(|@import|https?://", page)
