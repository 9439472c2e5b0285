"""Events of listings: what is told is what the log gives back, and what cannot be is refused with its field."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import listing

from listing_lens.indexing.events import (
    TOLERANCE,
    EventError,
    Poison,
    Told,
    entries_of,
    entry_of,
    listing_in,
    listing_of,
    newest,
    removal_of,
)
from listing_lens.lake.records import Listing, Status, by_version

NOW = datetime(2026, 11, 5, 12, tzinfo=UTC)
MOMENTS = st.datetimes(datetime(2026, 11, 1), datetime(2026, 11, 5), timezones=st.just(UTC))  # noqa: DTZ001
LISTINGS = st.builds(
    Listing,
    item_id=st.sampled_from("abc"),
    title=st.text(max_size=5),
    category=st.lists(st.text(min_size=1, max_size=3), max_size=2).map(tuple),
    price=st.integers(0, 3),
    image_uri=st.sampled_from(["one.jpg", "two.jpg"]),
    status=st.sampled_from(Status),
    created_at=MOMENTS,
    updated_at=MOMENTS,
    seller_id=st.none() | st.text(max_size=3),
)


@given(LISTINGS)
def test_the_log_gives_back_what_it_was_given(one: Listing) -> None:
    stored = orjson.loads(orjson.dumps(entry_of(one, NOW)))
    assert listing_in(stored) == one
    assert listing_in(stored).version == one.version


@given(st.lists(LISTINGS, max_size=8), st.randoms(use_true_random=False))
def test_the_newest_are_the_same_in_any_order_and_however_often(listings: list[Listing], random: object) -> None:
    shuffled = [*listings, *listings[:3]]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert newest(shuffled) == newest(listings)
    for one in newest(listings):
        assert all(by_version(other) <= by_version(one) for other in listings if other.item_id == one.item_id)


def test_times_that_are_left_out_are_now() -> None:
    made = listing_of("a", Told(title="a bag", price=5, image_uri="/a.jpg"), NOW)
    assert (made.created_at, made.updated_at, made.status) == (NOW, NOW, Status.ON_SALE)


@pytest.mark.parametrize(
    ("told", "field"),
    [
        ({"updated_at": NOW + TOLERANCE + timedelta(seconds=1)}, "updated_at"),
        ({"updated_at": NOW - timedelta(hours=1)}, "updated_at"),
        ({"updated_at": datetime(1969, 1, 1, tzinfo=UTC)}, "updated_at"),
        ({"category": [""]}, "category"),
        ({"category": ["x" * 40_000]}, "category"),
        ({"image_uri": None}, "image_uri"),
        ({"image_uri": ""}, "image_uri"),
    ],
)
def test_what_cannot_be_names_its_field(told: dict[str, object], field: str) -> None:
    with pytest.raises(EventError) as refused:
        listing_of(
            "a",
            Told.model_validate({"title": "a bag", "price": 5, "image_uri": "/a.jpg", **told}),
            NOW,
            oldest=NOW - TOLERANCE,
        )
    assert refused.value.field == field


def test_what_was_deleted_wins_over_an_edit_of_the_same_moment() -> None:
    edited = listing("a", updated_at=NOW)
    assert newest([removal_of("a", NOW, NOW), edited])[0].status == Status.DELETED
    assert newest([edited, removal_of("a", NOW - timedelta(seconds=1), NOW)]) == [edited]


class TestEventsFromAQueue:
    GOOD = json.dumps({"item_id": "a", "title": "a bag", "price": 5, "image_uri": "/a.jpg"}).encode()

    def test_are_listings(self) -> None:
        [made] = entries_of([self.GOOD], NOW)
        assert isinstance(made, Listing)
        assert made.item_id == "a"

    @pytest.mark.parametrize(
        ("event", "reason"),
        [
            (b"", "event: Invalid JSON"),
            (b"\xff\xfe", "event: Invalid JSON"),
            (b"[]", "event: Input should be an object"),
            (b'{"title": "a bag", "price": 5}', "item_id: Field required"),
            (b'{"item_id": "", "title": "a bag", "price": 5}', "item_id: String should have at least 1"),
            (b'{"item_id": "a", "title": "a bag", "price": "cheap"}', "price: Input should be a valid integer"),
            (b'{"item_id": "a", "title": "a bag", "price": 5}', "it has no photo and no image_uri"),
        ],
    )
    def test_that_are_poison_are_told_apart_with_the_reason(self, event: bytes, reason: str) -> None:
        poison, good = entries_of([event, self.GOOD], NOW)
        assert isinstance(poison, Poison)
        assert poison.text == event.decode(errors="replace")
        assert reason in poison.reason
        assert isinstance(good, Listing)

    @given(st.binary())
    def test_never_raise(self, event: bytes) -> None:
        assert len(list(entries_of([event], NOW))) == 1
