"""The buyers' page in a real browser, on a real service: by mouse, touch and keyboard, in both languages, with faults."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from faulty_proxy import FaultyProxy
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright
from served import served, service_of
from small_index import IDS, Small, small_index

from listing_lens.lake.records import Status

MARKUP = "<img src=x onerror=\"document.title='run'\"><b>bag</b>"
# Listings are otherwise "title of …" in A › B, on sale for ¥1,200.
CHANGES: dict[str, dict[str, object]] = {
    "m003": {"title": MARKUP},
    "m005": {"status": Status.RESERVED, "price": 900},
    "m006": {"price": 2500, "category": ("A", "C")},
    "m007": {"price": 2600, "category": ("A", "C", "D")},
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
# The smaller side of what is to be hit with a finger, in CSS pixels.
FINGER = 44

Visit = Callable[..., Page]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, elasticsearch_url: str, untrained_siglip: Path) -> Iterator[Small]:
    with small_index(tmp_path_factory.mktemp("shop"), elasticsearch_url, untrained_siglip, CHANGES) as made:
        yield made


@contextmanager
def serving(shop: Small, **changed: Any) -> Iterator[str]:
    with served(service_of(shop, **{"search_open_events": True, **changed})) as url:
        yield url


@pytest.fixture(scope="module")
def url(shop: Small) -> Iterator[str]:
    with serving(shop) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no Chromium or Chrome on this machine's PATH to look at the page with")
    expect.set_options(timeout=600_000)
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=path) as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser, url: str) -> Iterator[Visit]:
    """Opens the page, each time as another visitor. Whatever a page must never do fails the test at its end.

    Args of the callable: the path; `at`, another service's address; `refused`, statuses of answers or a fault of the network
    that are expected; and options of the browser's context.
    """
    contexts: list[BrowserContext] = []
    wrong: list[str] = []

    def opened(path: str = "/", *, at: str = url, refused: tuple[int | str, ...] = (), **options: Any) -> Page:
        context = browser.new_context(base_url=at, **{"locale": "en-US", **options})
        context.set_default_timeout(600_000)
        contexts.append(context)
        page = context.new_page()
        # The browser itself writes of each refused request to the console.
        page.on("console", lambda said: _unless(_is_refusal(said.text, refused), wrong, said.type, said.text))
        page.on("pageerror", lambda error: wrong.append(f"a script failed: {error}"))
        page.on("request", lambda sent: _unless(_is_of(sent.url, at), wrong, "error", f"a request to {sent.url}"))
        page.goto(path)
        # Whatever was asked for first has been answered.
        expect(page.locator("#grid")).to_have_attribute("aria-busy", "false")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not wrong


def _unless(is_right: bool, wrong: list[str], kind: str, text: str) -> None:
    if kind in ("error", "warning") and not is_right:
        wrong.append(text)


def _is_refusal(text: str, refused: tuple[int | str, ...]) -> bool:
    return text.startswith("Failed to load resource: ") and any(str(one) in text for one in refused)


def _is_of(address: str, at: str) -> bool:
    return address.startswith((f"{at}/", f"blob:{at}/")) or address == "about:blank"


def shown(page: Page) -> list[str]:
    """The items that are shown, in order."""
    return page.locator("#grid li").evaluate_all("cards => cards.map(card => card.dataset.item)")


def card(page: Page, item_id: str) -> Locator:
    return page.locator(f'#grid li[data-item="{item_id}"]').get_by_role("link").first


def first(page: Page) -> Locator:
    return page.locator("#grid li").first


def why(page: Page) -> Locator:
    """Why there is no answer, as the page says it."""
    return page.get_by_role("alert").get_by_role("paragraph")


def leave(page: Page) -> None:
    """Leave the page before its service ends: what it still loads is no fault."""
    page.goto("about:blank")


def choose(page: Page, photo: Path | dict[str, Any]) -> None:
    """Chooses a photo and waits for what is found."""
    page.locator("#file").set_input_files(photo)
    found(page)


def write(page: Page, words: str) -> None:
    """Writes words and searches with what is then shown."""
    words_of(page).fill(words)
    words_of(page).press("Enter")


def words_of(page: Page) -> Locator:
    return page.get_by_role("searchbox")


def found(page: Page, heading: str = "Most like your photo") -> None:
    expect(page.get_by_role("heading", name=heading, exact=True)).to_be_visible()
    settled(page)


def told(at: str, text: str, photo: Path | None = None) -> list[str]:
    """What the service itself finds for words, or for a photo and words."""
    asked = {"text": text, "k": "30", "keep": "false"}
    body = photo.read_bytes() if photo else None
    answer = httpx.request("POST" if body else "GET", f"{at}/search", params=asked, content=body, timeout=60)
    return [one["item_id"] for one in answer.raise_for_status().json()["results"]]


def settled(page: Page) -> None:
    expect(page.locator("#grid")).to_have_attribute("aria-busy", "false")


def side_by_side(shop: Small, left: str, right: str) -> dict[str, Any]:
    """A photo file whose halves are the photos of two items."""
    with Image.open(shop.photo(left)) as one, Image.open(shop.photo(right)) as other:
        both = Image.new("RGB", (one.width + other.width, one.height))
        both.paste(one, (0, 0))
        both.paste(other, (one.width, 0))
    return as_file(both, "PNG")


def as_file(image: Image.Image, kind: str) -> dict[str, Any]:
    data = io.BytesIO()
    image.save(data, kind)
    return {"name": f"photo.{kind.lower()}", "mimeType": f"image/{kind.lower()}", "buffer": data.getvalue()}


def entries(shop: Small) -> list[dict[str, Any]]:
    """What the log has."""
    files = sorted(Path(shop.settings.lake, "logs", "searches").rglob("*.jsonl"))
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


class TestPhotos:
    def test_a_photo_that_is_chosen_finds_its_own_listing_first(self, visit: Visit, shop: Small) -> None:
        page = visit()
        choose(page, shop.photo("m011"))
        assert shown(page)[0] == "m011"
        assert sorted(shown(page)) == IDS
        expect(first(page)).to_contain_text("title of m011¥1,200100 % alikeA › B")
        expect(page.get_by_role("status")).to_have_text("20 results")
        expect(page.get_by_role("heading", name="Most like your photo")).to_be_focused()
        expect(page.get_by_alt_text("Your photo")).to_be_visible()

    def test_a_photo_that_is_taken(self, visit: Visit, shop: Small) -> None:
        page = visit(**PHONE)
        expect(page.get_by_text("Take a photo")).to_be_visible()
        page.get_by_label("Take a photo").set_input_files(shop.photo("m011"))
        found(page)
        # Though the photo itself is above it.
        expect(page.get_by_role("heading", name="Most like your photo")).to_be_in_viewport()
        expect(first(page)).to_be_in_viewport()
        assert shown(page)[0] == "m011"

    def test_a_photo_that_is_pasted(self, visit: Visit, shop: Small) -> None:
        page = visit(permissions=["clipboard-read", "clipboard-write"])
        with Image.open(shop.photo("m011")) as image:
            data = list(as_file(image, "PNG")["buffer"])
        page.evaluate(
            """data => navigator.clipboard.write([
                new ClipboardItem({"image/png": new Blob([new Uint8Array(data)], {type: "image/png"})})])""",
            data,
        )
        page.keyboard.press("Control+V")
        found(page)
        assert shown(page)[0] == "m011"

    def test_a_photo_that_is_dropped(self, visit: Visit, shop: Small) -> None:
        page = visit()
        dragged = page.evaluate_handle(
            """data => {
                const dragged = new DataTransfer();
                dragged.items.add(new File([new Uint8Array(data)], "photo.jpg", {type: "image/jpeg"}));
                return dragged;
            }""",
            list(shop.photo("m011").read_bytes()),
        )
        page.dispatch_event("main", "dragover", {"dataTransfer": dragged})
        expect(page.locator("#drop")).to_have_class("over")
        page.dispatch_event("main", "drop", {"dataTransfer": dragged})
        found(page)
        expect(page.locator("#drop")).not_to_have_class("over")
        assert shown(page)[0] == "m011"

    def test_a_heic_photo_that_this_browser_cannot_show(self, visit: Visit, shop: Small) -> None:
        page = visit()
        with Image.open(shop.photo("m011")) as image:
            choose(page, {**as_file(image, "HEIF"), "name": "IMG_1.HEIC", "mimeType": ""})
        assert shown(page)[0] == "m011"
        expect(page.get_by_text("This browser cannot show the photo")).to_be_visible()
        expect(page.get_by_alt_text("Your photo")).to_be_hidden()
        # The next one can be shown again.
        choose(page, shop.photo("m004"))
        expect(page.get_by_alt_text("Your photo")).to_be_visible()
        assert shown(page)[0] == "m004"

    def test_an_example_among_the_newest_listings(self, visit: Visit) -> None:
        page = visit()
        expect(page.get_by_role("heading", name="Newest listings")).to_be_visible()
        card(page, "m011").click()
        page.get_by_role("link", name="Search with this photo").click()
        found(page)
        assert shown(page)[0] == "m011"

    def test_of_two_searches_the_later_one_is_shown(self, visit: Visit, shop: Small) -> None:
        page = visit()
        page.locator("#file").set_input_files(shop.photo("m004"))
        choose(page, shop.photo("m011"))
        assert shown(page)[0] == "m011"
        page.go_back()
        settled(page)
        assert shown(page)[0] == "m004"


class TestWords:
    def test_find_what_the_service_finds_for_them(self, visit: Visit, url: str) -> None:
        page = visit()
        for text in ("red shoes", "青い鞄 100% & more"):
            write(page, text)
            found(page, "Most like your words")
            expect(page).to_have_title(f"{text} – Listing Lens")
            expect(page.get_by_role("status")).to_have_text("20 results")
            assert shown(page) == told(url, text)
            assert parse_qs(urlsplit(page.url).query) == {"text": [text]}
        # A likeness to words is none of photos, and says nothing in percent.
        expect(first(page)).not_to_contain_text("alike")

    def test_with_a_photo_find_what_is_like_both(self, visit: Visit, url: str, shop: Small) -> None:
        page = visit()
        choose(page, shop.photo("m011"))
        expect(page.get_by_label("Add words to the photo")).to_be_visible()
        write(page, "red shoes")
        found(page, "Most like your photo and words")
        assert shown(page) == told(url, "red shoes", shop.photo("m011"))
        expect(page.get_by_alt_text("Your photo")).to_be_visible()

    def test_with_the_photo_of_an_item(self, visit: Visit) -> None:
        page = visit("/?photo=m011")
        write(page, "red shoes")
        found(page, "Most like your photo and words")
        expect(page.get_by_role("status")).to_have_text("20 results")
        assert parse_qs(urlsplit(page.url).query) == {"photo": ["m011"], "text": ["red shoes"]}

    def test_and_the_photo_can_each_be_taken_away(self, visit: Visit, url: str, shop: Small) -> None:
        page = visit()
        write(page, "red shoes")
        found(page, "Most like your words")
        page.locator("#file").set_input_files(shop.photo("m011"))
        found(page, "Most like your photo and words")
        write(page, "")
        found(page)
        assert "text" not in page.url
        assert shown(page)[0] == "m011"
        page.go_back()
        found(page, "Most like your photo and words")
        page.get_by_role("button", name="Remove the photo").click()
        found(page, "Most like your words")
        expect(page.get_by_alt_text("Your photo")).to_be_hidden()
        assert shown(page) == told(url, "red shoes")
        write(page, "")
        expect(page.get_by_role("heading", name="Newest listings")).to_be_visible()

    def test_that_were_only_just_written_count_with_whatever_is_done_next(self, visit: Visit, shop: Small) -> None:
        page = visit()
        words_of(page).fill("red shoes")
        page.locator("#file").set_input_files(shop.photo("m011"))
        found(page, "Most like your photo and words")
        words_of(page).fill("blue bag")
        page.get_by_label("Price from").fill("1000")
        page.get_by_role("button", name="Apply").click()
        expect(page.get_by_role("status")).to_have_text("19 results")
        expect(words_of(page)).to_have_value("blue bag")
        assert parse_qs(urlsplit(page.url).query)["text"] == ["blue bag"]

    def test_stay_with_filters_and_categories(self, visit: Visit) -> None:
        page = visit("/?text=red+shoes")
        page.locator('[data-item="m006"]').get_by_role("link", name="A › C").click()
        expect(page.get_by_role("status")).to_have_text("2 results")
        assert sorted(shown(page)) == ["m006", "m007"]
        page.get_by_label("Price from").fill("2600")
        page.get_by_role("button", name="Apply").click()
        expect(page.get_by_role("status")).to_have_text("1 result")
        expect(words_of(page)).to_have_value("red shoes")
        write(page, "blue bag")
        found(page, "Most like your words")
        assert parse_qs(urlsplit(page.url).query) == {
            "price_min": ["2600"],
            "category": ["A", "C"],
            "text": ["blue bag"],
        }

    def test_on_an_items_page_begin_a_search_of_their_own(self, visit: Visit, url: str) -> None:
        page = visit("/?item=m011&text=red+shoes")
        expect(page.locator("#item-title")).to_have_text("title of m011")
        expect(words_of(page)).to_have_value("")
        write(page, "blue bag")
        found(page, "Most like your words")
        assert shown(page) == told(url, "blue bag")

    def test_that_are_none_ask_for_some(self, visit: Visit) -> None:
        page = visit()
        page.get_by_role("button", name="Search", exact=True).click()
        expect(words_of(page)).to_be_focused()
        assert urlsplit(page.url).query == ""

    def test_of_a_link_are_as_many_as_the_service_takes(self, visit: Visit) -> None:
        page = visit("/?text=%20%20")
        expect(page.get_by_role("heading", name="Newest listings")).to_be_visible()
        page.goto(f"/?text={'word ' * 1000}")
        found(page, "Most like your words")
        expect(words_of(page)).to_have_value("word " * 199 + "word ")

    def test_in_japanese(self, visit: Visit, url: str, shop: Small) -> None:
        page = visit(locale="ja-JP")
        page.get_by_role("searchbox", name="キーワード").fill("赤い靴")
        page.get_by_role("button", name="検索", exact=True).click()
        expect(page.get_by_role("heading", name="キーワードに合う商品")).to_be_focused()
        assert shown(page) == told(url, "赤い靴")
        page.locator("#file").set_input_files(shop.photo("m011"))
        expect(page.get_by_role("heading", name="写真とキーワードに合う商品")).to_be_focused()
        page.get_by_role("button", name="English").click()
        expect(page.get_by_label("Add words to the photo")).to_have_attribute("placeholder", "such as: in green")


class TestCrop:
    def test_a_box_that_is_drawn(self, visit: Visit, shop: Small) -> None:
        page = visit()
        choose(page, side_by_side(shop, "m003", "m011"))
        page.get_by_text("Search with a part of the photo").click()
        area = page.locator("#frame").bounding_box()
        assert area is not None
        page.mouse.move(area["x"] + area["width"] / 2, area["y"])
        page.mouse.down()
        page.mouse.move(area["x"] + area["width"], area["y"] + area["height"], steps=5)
        page.mouse.up()
        page.get_by_role("button", name="Search with this part").click()
        settled(page)
        assert shown(page)[0] == "m011"
        page.get_by_role("button", name="Whole photo").click()
        settled(page)
        assert "crop" not in page.url
        expect(page.locator("#box")).to_be_hidden()

    def test_sides_that_are_moved_with_keys(self, visit: Visit, shop: Small) -> None:
        page = visit()
        choose(page, side_by_side(shop, "m003", "m011"))
        page.get_by_text("Search with a part of the photo").focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        expect(page.get_by_label("Left")).to_be_focused()
        page.keyboard.press("Tab")
        for _ in range(5):
            page.keyboard.press("PageDown")
        expect(page.get_by_role("slider", name="Right")).to_have_attribute("aria-valuetext", "50 %")
        page.get_by_role("button", name="Search with this part").focus()
        page.keyboard.press("Enter")
        settled(page)
        assert shown(page)[0] == "m003"

    def test_sides_never_pass_each_other(self, visit: Visit, shop: Small) -> None:
        page = visit()
        choose(page, shop.photo("m003"))
        page.get_by_text("Search with a part of the photo").click()
        page.get_by_role("slider", name="Left").press("End")
        page.get_by_role("slider", name="Bottom").press("Home")
        page.get_by_role("button", name="Search with this part").click()
        settled(page)
        assert parse_qs(urlsplit(page.url).query)["crop"] == ["0.95,0,1,0.05"]


class TestFilters:
    def test_by_price_and_status(self, visit: Visit, shop: Small) -> None:
        page = visit()
        choose(page, shop.photo("m011"))
        page.get_by_label("Price to").fill("1000")
        page.get_by_label("Price to").press("Enter")
        expect(page.get_by_role("status")).to_have_text("1 result")
        expect(first(page)).to_contain_text("Reserved")
        assert shown(page) == ["m005"]
        page.get_by_label("Status").select_option("On sale")
        page.get_by_role("button", name="Apply").click()
        expect(page.get_by_role("status")).to_have_text(
            "Nothing was found with these filters. Change or clear them to see more."
        )
        assert shown(page) == []
        page.get_by_role("button", name="Clear filters").click()
        expect(page.get_by_role("status")).to_have_text("20 results")
        assert shown(page)[0] == "m011"

    def test_by_the_category_of_a_result(self, visit: Visit, shop: Small) -> None:
        page = visit()
        choose(page, shop.photo("m011"))
        page.locator('[data-item="m006"]').get_by_role("link", name="A › C").click()
        settled(page)
        assert sorted(shown(page)) == ["m006", "m007"]
        expect(page.locator("#category")).to_contain_text("A › C")
        page.get_by_role("button", name="All categories").click()
        settled(page)
        assert shown(page)[0] == "m011"

    def test_of_the_newest_listings(self, visit: Visit) -> None:
        page = visit()
        page.get_by_label("Price from").fill("2000")
        page.get_by_role("button", name="Apply").click()
        expect(page.get_by_role("status")).to_have_text("2 results")
        assert sorted(shown(page)) == ["m006", "m007"]

    def test_that_contradict_each_other_are_explained(self, visit: Visit) -> None:
        page = visit(refused=(422,))
        page.get_by_label("Price from").fill("2")
        page.get_by_label("Price to").fill("1")
        page.get_by_role("button", name="Apply").click()
        expect(why(page)).to_have_text("The lowest price is above the highest. Change one of them.")


class TestItems:
    def test_an_item_shows_those_similar_to_it_and_back_leads_to_the_results(self, visit: Visit, shop: Small) -> None:
        page = visit(viewport={"width": 1000, "height": 500})
        choose(page, shop.photo("m011"))
        results, asked = shown(page), []
        page.on("request", lambda sent: asked.append(f"{sent.method} {urlsplit(sent.url).path}"))
        last = [item_id for item_id in results if item_id not in CHANGES][-1]
        card(page, last).scroll_into_view_if_needed()
        height = page.evaluate("scrollY")
        assert height > 0
        card(page, last).click()
        expect(page.locator("#item-title")).to_be_focused()
        expect(page.get_by_role("article")).to_contain_text("¥1,200 On sale A › B")
        assert page.title() == f"title of {last} – Listing Lens"
        assert last not in shown(page)
        assert page.evaluate("scrollY") == 0
        page.go_back()
        expect(card(page, last)).to_be_focused()
        expect(page.get_by_role("article")).to_be_hidden()
        assert shown(page) == results
        assert page.evaluate("scrollY") == height
        assert "POST /search" not in asked
        page.go_forward()
        expect(page.locator("#item-title")).to_have_text(f"title of {last}")

    def test_that_do_not_exist_are_said(self, visit: Visit) -> None:
        page = visit("/?item=nothing", refused=(404,))
        expect(why(page)).to_have_text("There is no such item, or it is not on sale any more.")
        expect(page.get_by_role("button", name="Try again")).to_be_hidden()
        page.get_by_role("link", name="Listing Lens").click()
        expect(page.get_by_role("status")).to_have_text("20 results")

    def test_markup_in_a_title_stays_text(self, visit: Visit) -> None:
        page = visit()
        expect(card(page, "m003")).to_contain_text(MARKUP)
        card(page, "m003").click()
        expect(page.locator("#item-title")).to_have_text(MARKUP)
        assert page.title() == f"{MARKUP} – Listing Lens"
        assert page.locator("#item-title *, .title *").count() == 0


class TestLinks:
    def test_a_search_with_its_part_and_filters_is_the_same_for_another_visitor(
        self, visit: Visit, shop: Small
    ) -> None:
        page = visit(permissions=["clipboard-read", "clipboard-write"])
        choose(page, side_by_side(shop, "m003", "m011"))
        page.get_by_text("Search with a part of the photo").click()
        for _ in range(5):
            page.get_by_role("slider", name="Left").press("PageUp")
        page.get_by_role("button", name="Search with this part").click()
        settled(page)
        page.get_by_label("Price from").fill("1000")
        page.get_by_role("button", name="Apply").click()
        settled(page)
        results = shown(page)
        assert results[0] == "m011"
        assert "m005" not in results
        page.get_by_role("button", name="Copy link").click()
        expect(page.get_by_role("status")).to_have_text("The link is copied. Whoever has it can see your photo.")
        link = page.evaluate("navigator.clipboard.readText()")
        other = visit(link)
        assert shown(other)[0] == "m011"
        assert sorted(shown(other)) == sorted(results)
        expect(other.get_by_role("slider", name="Left")).to_have_value("0.5")
        expect(other.get_by_label("Price from")).to_have_value("1000")
        expect(other.get_by_alt_text("Your photo")).to_be_visible()
        other.reload()
        found(other)
        assert shown(other)[0] == "m011"

    def test_words_are_the_same_for_another_visitor_and_going_back_leads_to_those_before(
        self, visit: Visit, shop: Small
    ) -> None:
        page = visit()
        write(page, "red shoes")
        found(page, "Most like your words")
        results = shown(page)
        write(page, "blue bag")
        expect(page).to_have_title("blue bag – Listing Lens")
        page.go_back()
        expect(words_of(page)).to_have_value("red shoes")
        settled(page)
        assert shown(page) == results
        page.go_forward()
        expect(words_of(page)).to_have_value("blue bag")
        settled(page)
        page.locator("#file").set_input_files(shop.photo("m011"))
        found(page, "Most like your photo and words")
        other = visit("/?text=red+shoes")
        found(other, "Most like your words")
        assert shown(other) == results
        other.reload()
        found(other, "Most like your words")
        assert shown(other) == results
        # Of the visitor's own photo there is a smaller copy, which finds nearly the same.
        other.goto(page.url)
        found(other, "Most like your photo and words")
        expect(other.get_by_alt_text("Your photo")).to_be_visible()
        expect(words_of(other)).to_have_value("blue bag")
        assert shown(other)[0] == shown(page)[0]

    def test_an_item_is_the_same_for_another_visitor(self, visit: Visit) -> None:
        page = visit()
        card(page, "m011").click()
        expect(page.locator("#item-title")).to_be_focused()
        other = visit(page.url)
        expect(other.locator("#item-title")).to_have_text("title of m011")
        assert shown(other) == shown(page)

    def test_without_a_clipboard_the_link_is_shown(self, visit: Visit) -> None:
        page = visit("/?photo=m011")
        page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
        page.get_by_role("button", name="Copy link").click()
        expect(page.get_by_role("status")).to_have_text(f"Copy this link: {page.url}")

    def test_a_photo_that_is_not_kept_is_said(self, visit: Visit) -> None:
        page = visit(f"/?search={'0' * 32}", refused=(404,))
        expect(why(page)).to_contain_text("The photo of this search is not kept. Choose it again")

    def test_a_part_that_is_none_is_all_of_the_photo(self, visit: Visit) -> None:
        page = visit()
        for crop in ("", "a,b,c,d", "0.5,0,0.4,1", "0,0,1", "-1,0,1,1", "1e9,0,1,1"):
            page.goto(f"/?photo=m011&crop={crop}")
            found(page)
            assert shown(page)[0] == "m011"
            expect(page.locator("#box")).to_be_hidden()


class TestAccess:
    def test_everything_can_be_done_with_keys(self, visit: Visit, shop: Small) -> None:
        page = visit()
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the results")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Newest listings")).to_be_focused()
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        expect(page.locator("#grid a").first).to_be_focused()
        page.locator("#file").focus()
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Space")
        chooser.value.set_files(shop.photo("m011"))
        expect(page.get_by_role("heading", name="Most like your photo")).to_be_focused()
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name="Copy link")).to_be_focused()
        page.keyboard.press("Tab")
        expect(card(page, "m011")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("#item-title")).to_be_focused()
        page.go_back()
        expect(card(page, "m011")).to_be_focused()

    def test_words_are_written_and_the_photo_removed_with_keys(self, visit: Visit, shop: Small) -> None:
        page = visit()
        choose(page, shop.photo("m011"))
        page.get_by_role("button", name="English").focus()
        page.keyboard.press("Tab")
        expect(words_of(page)).to_be_focused()
        page.keyboard.type("red shoes")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Most like your photo and words")).to_be_focused()
        page.get_by_role("button", name="Remove the photo").focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Most like your words")).to_be_focused()

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_axe_finds_nothing_serious(self, visit: Visit, shop: Small, scheme: str) -> None:
        page = visit(color_scheme=scheme)
        serious(page)
        choose(page, shop.photo("m011"))
        page.get_by_text("Search with a part of the photo").click()
        serious(page)
        card(page, "m005").click()
        expect(page.locator("#item-title")).to_be_focused()
        serious(page)
        page.goto("/?photo=m011&text=in+green")
        found(page, "Most like your photo and words")
        serious(page)

    @pytest.mark.parametrize(
        "path", ["/", "/?text=red+shoes", "/?photo=m011&crop=0,0,0.5,0.5&category=A&text=in+green", "/?item=m005"]
    )
    def test_a_phone_shows_it_in_its_width_and_fingers_can_hit_it(self, visit: Visit, path: str) -> None:
        page = visit(path, **PHONE)
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["viewport"]["width"]
        if "item" not in path:
            expect(page.get_by_label("Price from")).to_be_hidden()
            page.get_by_text("Filters", exact=False).first.click()
            expect(page.get_by_label("Price from")).to_be_visible()
        targets = page.locator("a:visible, button:visible, select:visible, summary:visible, label:visible")
        small = targets.evaluate_all(
            """(targets, least) => targets.filter(target => !target.closest(".skip")).map(target => {
                const {width, height} = target.getBoundingClientRect();
                return [target.textContent.trim(), width, height];
            }).filter(([, width, height]) => Math.min(width, height) < least)""",
            FINGER,
        )
        assert small == []

    def test_speaks_japanese_where_the_browser_does_and_english_if_told_to(self, visit: Visit, shop: Small) -> None:
        page = visit(locale="ja-JP")
        expect(page.locator("html")).to_have_attribute("lang", "ja")
        page.locator("#file").set_input_files(shop.photo("m011"))
        expect(page.get_by_role("heading", name="写真に似た商品")).to_be_focused()
        expect(page.get_by_role("status")).to_have_text("20件")
        expect(first(page)).to_contain_text("類似度 100%")
        expect(first(page)).to_contain_text("￥1,200")
        asked: list[str] = []
        page.on("request", lambda sent: asked.append(sent.url))
        page.get_by_role("button", name="English").click()
        expect(page.get_by_role("heading", name="Most like your photo")).to_be_visible()
        expect(page.locator("html")).to_have_attribute("lang", "en")
        expect(page.get_by_role("button", name="English")).to_have_attribute("aria-pressed", "true")
        assert not [one for one in asked if "/search" in one]
        page.reload()
        found(page)

    def test_all_words_are_there_in_both_languages(self, visit: Visit) -> None:
        page = visit()
        for language in ("ja", "en"):
            page.locator(f"[data-language={language}]").click()
            words = page.locator("[data-words]").evaluate_all("all => all.map(one => one.textContent)")
            assert all(words)
            assert "undefined" not in words


def serious(page: Page) -> None:
    # Axe is put into the page, as the page's own policy would not let it.
    found = Axe().run(page).response["violations"]
    assert [(one["id"], [node["target"] for node in one["nodes"]]) for one in found] == []


class TestRefusals:
    def test_who_asks_too_often_is_told_when_to_try_again(self, visit: Visit, shop: Small) -> None:
        with serving(shop, search_rates={"search": "1/hour"}) as busy:
            page = visit(at=busy, refused=(429,))
            page.clock.install()
            choose(page, shop.photo("m011"))
            page.locator("#file").set_input_files(shop.photo("m004"))
            expect(why(page)).to_contain_text("Many are searching just now. Please try again in 60 minutes.")
            again = page.get_by_role("button", name="Try again")
            expect(again).to_be_disabled()
            page.clock.fast_forward("01:00:01")
            expect(again).to_be_enabled()
            assert shown(page) == []
            leave(page)

    def test_a_node_that_is_away_is_said_and_can_be_asked_again(
        self, visit: Visit, shop: Small, elasticsearch_url: str
    ) -> None:
        with FaultyProxy(elasticsearch_url) as proxy, serving(shop, elasticsearch_url=proxy.url) as service:
            page = visit(at=service, refused=(503,), locale="ja-JP")
            proxy.go_away()
            page.locator("#file").set_input_files(shop.photo("m011"))
            expect(why(page)).to_contain_text("ただいま検索できません。")
            proxy.come_back()
            page.get_by_role("button", name="もう一度試す").click()
            expect(page.get_by_role("status")).to_have_text("20件")
            expect(page.get_by_role("alert")).to_be_hidden()
            assert shown(page)[0] == "m011"
            leave(page)

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_words_that_this_catalog_knows_none_of(self, visit: Visit, shop: Small, scheme: str) -> None:
        with serving(shop, search_text=False) as service:
            page = visit(at=service, refused=(422,), color_scheme=scheme)
            write(page, "red shoes")
            expect(why(page)).to_have_text("This catalog can only be searched by photo.")
            expect(page.get_by_role("button", name="Search with the photo alone")).to_be_hidden()
            serious(page)
            choose(page, shop.photo("m011"))
            assert shown(page)[0] == "m011"
            write(page, "red shoes")
            expect(why(page)).to_have_text("This catalog can only be searched by photo.")
            serious(page)
            page.get_by_role("button", name="Search with the photo alone").click()
            found(page)
            expect(page.get_by_role("alert")).to_be_hidden()
            assert shown(page)[0] == "m011"
            leave(page)

    def test_words_that_are_refused_in_japanese(self, visit: Visit, shop: Small) -> None:
        with serving(shop, search_text=False) as service:
            page = visit("/?photo=m011&text=赤い靴", at=service, refused=(422,), locale="ja-JP")
            expect(why(page)).to_have_text("キーワード検索には対応していません。写真で探してください。")
            page.get_by_role("button", name="写真だけで探す").click()
            expect(page.get_by_role("heading", name="写真に似た商品")).to_be_focused()
            leave(page)

    def test_what_is_no_photo(self, visit: Visit) -> None:
        page = visit(refused=(422,))
        page.locator("#file").set_input_files({"name": "a.txt", "mimeType": "text/plain", "buffer": b"a text"})
        expect(why(page)).to_contain_text("This file is not a photo that can be read.")

    def test_a_photo_that_is_too_large(self, visit: Visit, shop: Small, tmp_path: Path) -> None:
        with serving(shop, image_max_bytes=200_000) as service:
            page = visit(at=service, refused=(413,))
            # Of the larger one, most is still to be sent when the service refuses it.
            for size in (250_000, 30_000_000):
                photo = tmp_path / f"{size}.jpg"
                photo.write_bytes(bytes(size))
                page.locator("#file").set_input_files(photo)
                expect(why(page)).to_have_text("This photo is too large. Choose a smaller one.")
                page.get_by_role("link", name="Listing Lens").click()
                expect(page.get_by_role("alert")).to_be_hidden()
            leave(page)

    def test_no_connection(self, visit: Visit) -> None:
        page = visit(refused=("net::ERR_FAILED",))
        page.route("**/items/m011/similar*", lambda route: route.abort())
        card(page, "m011").click()
        expect(why(page)).to_contain_text("The service cannot be reached.")


class TestWhatIsTold:
    def test_impressions_taps_and_views_are_in_the_log(self, visit: Visit, shop: Small) -> None:
        page = visit()
        choose(page, shop.photo("m011"))
        search_id = parse_qs(urlsplit(page.url).query)["search"][0]
        with page.expect_response("**/events") as told:
            card(page, "m011").click()
        assert told.value.json()["stored"] >= 1
        expect(page.locator("#item-title")).to_be_focused()
        # The rest is told when the page is left.
        page.goto("about:blank")
        kinds: set[tuple[str, str]] = set()
        while ("view", "m011") not in kinds:
            time.sleep(0.02)
            kinds = {(one["kind"], one.get("item_id", "")) for one in entries(shop) if one["search_id"] == search_id}
        assert kinds >= {("impression", "m011"), ("tap", "m011"), ("view", "m011"), ("search", "")}

    def test_nothing_of_who_does_not_want_it(self, visit: Visit, shop: Small) -> None:
        page = visit()
        page.get_by_label("My searches may be kept").uncheck()
        before = entries(shop)
        sent: list[str] = []
        page.on("request", lambda request: sent.append(urlsplit(request.url).path))
        choose(page, shop.photo("m011"))
        expect(page.get_by_role("button", name="Copy link")).to_be_hidden()
        # The photo is at hand all the same, until the page is left.
        page.get_by_label("Price from").fill("2000")
        page.get_by_role("button", name="Apply").click()
        expect(page.get_by_role("status")).to_have_text("2 results")
        card(page, "m006").click()
        expect(page.locator("#item-title")).to_be_focused()
        page.go_back()
        expect(card(page, "m006")).to_be_focused()
        page.reload()
        expect(why(page)).to_contain_text("The photo of this search is not kept. Choose it again")
        expect(page.get_by_label("My searches may be kept")).not_to_be_checked()
        page.goto("about:blank")
        assert "/search" in sent
        assert "/events" not in sent
        assert entries(shop) == before

    def test_words_are_kept_unless_they_may_not_be(self, visit: Visit, shop: Small) -> None:
        page = visit()
        with page.expect_response("**/search?*") as answered:
            write(page, "a kept text")
        search_id = answered.value.json()["search_id"]
        kept: list[dict[str, Any]] = []
        while not kept:
            time.sleep(0.02)
            kept = [one for one in entries(shop) if one["search_id"] == search_id and one["kind"] == "search"]
        assert kept[0]["text"] == "a kept text"
        page.get_by_label("My searches may be kept").uncheck()
        with page.expect_response("**/search?*") as answered:
            write(page, "a private text")
        assert answered.value.json()["search_id"] is None
        # It is in the address all the same, which is the visitor's own.
        expect(page.get_by_role("button", name="Copy link")).to_be_visible()
        page.locator("#file").set_input_files(shop.photo("m011"))
        found(page, "Most like your photo and words")
        page.reload()
        expect(why(page)).to_contain_text("The photo of this search is not kept. Choose it again")
        # The words can be searched with again.
        page.get_by_role("button", name="Search", exact=True).click()
        found(page, "Most like your words")
        expect(words_of(page)).to_have_value("a private text")
        page.goto("about:blank")
        assert not [one for one in entries(shop) if one.get("text") == "a private text"]

    def test_nothing_where_the_browser_says_so(self, visit: Visit) -> None:
        page = visit()
        page.add_init_script("Object.defineProperty(navigator, 'globalPrivacyControl', {value: true})")
        page.reload()
        expect(page.get_by_label("My searches may be kept")).not_to_be_checked()
        expect(page.get_by_label("My searches may be kept")).to_be_disabled()

    def test_a_service_that_wants_no_events_is_told_no_more(self, visit: Visit, shop: Small) -> None:
        with serving(shop, search_open_events=False) as service:
            page = visit(at=service, refused=(403,))
            sent: list[str] = []
            page.on("request", lambda request: sent.append(urlsplit(request.url).path))
            with page.expect_response("**/events"):
                choose(page, shop.photo("m011"))
            card(page, "m011").click()
            expect(page.locator("#item-title")).to_be_focused()
            leave(page)
            assert sent.count("/events") == 1
