"""The made catalog as data: its shape, its story from day to day, and searches that a person could have made."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import groupby

import numpy as np
import pytest

from listing_lens.demo.chance import generator
from listing_lens.demo.palette import COLOURS
from listing_lens.demo.plan import DemoSpec, plan_demo
from listing_lens.demo.sessions import (
    KINDS_OF_QUERIES,
    SHOWN,
    SHUFFLED_SHARE,
    attraction,
    click,
    examination,
    looks,
    plan_sessions,
)
from listing_lens.errors import LensError
from listing_lens.lake.records import SEARCHABLE, QueryKind, Status

SPEC = DemoSpec()


@pytest.fixture(scope="module")
def catalog():
    return plan_demo(SPEC)


@pytest.fixture(scope="module")
def sessions(catalog):
    return plan_sessions(catalog)


@pytest.fixture(scope="module")
def histories(catalog):
    """The versions of each item, by time."""
    by_item = sorted(catalog.versions, key=lambda version: (version.listing.item_id, version.listing.updated_at))
    return {item: list(group) for item, group in groupby(by_item, key=lambda version: version.listing.item_id)}


def test_the_same_spec_gives_the_same_catalog(catalog, sessions):
    again = plan_demo(SPEC)
    assert again == catalog
    assert plan_sessions(again) == sessions


def test_another_seed_gives_another_catalog(catalog):
    other = plan_demo(DemoSpec(seed=8))
    assert not {version.listing.item_id for version in other.versions} & {
        version.listing.item_id for version in catalog.versions
    }


def test_as_many_listings_as_asked_for_and_every_version_in_a_window(catalog, histories):
    assert len(histories) == SPEC.listings
    assert sum(len(catalog.within(window)) for window in SPEC.windows) == len(catalog.versions)
    for window in SPEC.windows:
        found = catalog.within(window)
        assert len({version.listing.item_id for version in found}) == len(found) > 500
        hours = Counter(version.listing.updated_at.hour for version in found)
        assert len(hours) > 18


def test_products_are_listed_by_several_sellers(histories):
    sizes = Counter(versions[0].product.product_id for versions in histories.values())
    assert set(sizes.values()) == {1, 2, 3, 4, 5, 6}
    assert np.mean(list(sizes.values())) == pytest.approx(3, abs=0.3)
    sellers = Counter((v[0].product.product_id, v[0].photo.photographer) for v in histories.values())
    assert set(sellers.values()) == {1}


def test_listings_name_their_seller_and_product(catalog):
    for version in catalog.versions:
        assert version.listing.product_id == version.product.product_id
        assert version.listing.seller_id == version.photo.photographer


def test_histories_are_plausible(histories):
    updated = [versions for versions in histories.values() if len(versions) > 1]
    assert len(updated) > 100
    for first, second in updated:
        assert first.listing.status in SEARCHABLE
        assert first.listing.updated_at.date() < second.listing.updated_at.date()
        assert first.listing.created_at == second.listing.created_at
        assert second.listing.price <= first.listing.price
        assert first.product == second.product
    assert {versions[1].listing.status for versions in updated} == set(Status)
    assert any(first.listing.price > second.listing.price for first, second in updated)
    assert any(first.photo != second.photo for first, second in updated)


def test_listings_read_like_a_marketplace(catalog):
    for version in catalog.versions:
        listing = version.listing
        assert listing.created_at <= listing.updated_at
        assert 300 <= listing.price < 200_000
        assert listing.title.strip() == listing.title != ""
        assert len(listing.category) == 3
        if listing.status == Status.RESERVED:
            assert "様専用" in listing.title or listing.title.startswith("Reserved for ")
    japanese = np.mean([not version.listing.title.isascii() for version in catalog.versions])
    assert 0.4 < japanese < 0.9


def test_a_few_photos_are_broken(catalog):
    broken = Counter(version.photo.breakage for version in catalog.versions if version.photo.breakage)
    assert set(broken) == {"truncated", "not_an_image", "one_pixel", "huge", "empty"}
    assert 0.004 < broken.total() / SPEC.listings < 0.015


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"listings": 0}, "--listings"),
        ({"days": 0}, "--days"),
        ({"sessions": -1}, "--sessions"),
        ({"seed": -1}, "--seed"),
        ({"start": datetime(2026, 11, 1, 5, tzinfo=UTC)}, "--start"),
        ({"start": datetime(2026, 11, 1)}, "--start"),  # noqa: DTZ001
    ],
)
def test_a_spec_that_does_not_fit_is_refused(change, named):
    with pytest.raises(LensError, match=named):
        DemoSpec(**change)


def test_sessions_show_only_what_could_be_bought_then(histories, sessions):
    assert len(sessions) == SPEC.sessions
    for found in sessions:
        session = found.session
        assert len(session.shown) == len(session.tapped) == len(set(session.shown)) == SHOWN
        for item in session.shown:
            then = [v for v in histories[item] if v.listing.updated_at <= session.searched_at]
            assert then, "shown before it was listed"
            assert then[-1].listing.status in SEARCHABLE
            assert then[-1].photo.breakage is None


def test_sessions_lie_in_every_window_most_in_the_last(sessions):
    counts = [sum(found.session.searched_at in window for found in sessions) for window in SPEC.windows]
    assert sum(counts) == len(sessions)
    assert 0 < counts[0] < counts[1] < counts[2]


def test_most_sessions_show_twins_and_have_one_to_three_taps(histories, sessions):
    product_of = {item: versions[0].product.product_id for item, versions in histories.items()}
    with_twin = [
        found.wanted.product_id in {product_of[i] for i in found.session.shown}
        for found in sessions
        # What is wanted in another colour, nobody may have.
        if found.session.query.kind is not QueryKind.PHOTO_AND_TEXT
    ]
    taps = np.array([sum(found.session.tapped) for found in sessions])
    assert np.mean(with_twin) > 0.9
    assert np.mean((taps >= 1) & (taps <= 3)) > 0.6
    assert 0.03 < np.mean(taps == 0) < 0.35


def test_people_search_with_photos_words_or_both(sessions):
    by_kind = {kind: [found for found in sessions if found.session.query.kind is kind] for kind in QueryKind}
    for kind, share in KINDS_OF_QUERIES.items():
        assert len(by_kind[kind]) / len(sessions) == pytest.approx(share, abs=0.07)
    for found in by_kind[QueryKind.PHOTO_AND_TEXT]:
        [photo] = found.photos
        colour = COLOURS[found.wanted.colour]
        assert photo.product.kind == found.wanted.kind
        assert photo.product.colour != found.wanted.colour
        assert found.session.query.text.split(" ")[0] in (colour.japanese, colour.english.split(" ")[0])
    assert all(len({photo.name for photo in found.photos}) == 3 for found in by_kind[QueryKind.PHOTOS])
    assert all(not found.photos and found.session.query.text for found in by_kind[QueryKind.TEXT])


def test_the_query_is_photographed_by_somebody_who_does_not_sell(catalog, sessions):
    sellers = {version.photo.photographer for version in catalog.versions}
    assert not sellers & {photo.photographer for found in sessions for photo in found.photos}


def test_clicks_have_position_bias():
    rng = generator(1, "clicks")
    rates = np.mean([click(np.full(20, 0.5), rng) for _ in range(4000)], axis=0)
    assert rates == pytest.approx(0.5 / np.log2(np.arange(2, 22)), abs=0.04)
    assert examination(np.array([1, 3])).tolist() == [1, 0.5]


def test_a_share_of_sessions_is_in_random_order(histories, sessions):
    """There the wanted product is at any rank; the engine has it among the first."""
    product_of = {item: versions[0].product.product_id for item, versions in histories.items()}
    ranks = {True: [], False: []}
    for found in sessions:
        ranks[found.shuffled] += [
            rank for rank, item in enumerate(found.session.shown) if product_of[item] == found.wanted.product_id
        ]
    assert np.mean([found.shuffled for found in sessions]) == pytest.approx(SHUFFLED_SHARE, abs=0.04)
    assert np.mean(ranks[True]) == pytest.approx((SHOWN - 1) / 2, abs=1)
    assert np.mean(ranks[False]) < 6


def test_what_is_shown_beside_the_wanted_product_is_much_like_it(histories, sessions):
    product_of = {item: versions[0].product for item, versions in histories.items()}
    others = [
        (found.wanted, product_of[item])
        for found in sessions
        for item in found.session.shown
        if product_of[item].product_id != found.wanted.product_id
    ]
    assert np.mean([wanted.kind == other.kind for wanted, other in others]) > 0.7
    assert np.mean([(wanted.kind, wanted.colour) == (other.kind, other.colour) for wanted, other in others]) > 0.12


def test_clicks_follow_attraction(catalog):
    products = list({version.product.product_id: version.product for version in catalog.versions}.values())
    wanted = products[0]
    same_kind = next(p for p in products if p.kind == wanted.kind and p.colour != wanted.colour)
    other = next(p for p in products if p.kind != wanted.kind)
    assert attraction(wanted, wanted) > attraction(wanted, same_kind) > attraction(wanted, other) > 0


@pytest.mark.parametrize(
    "change", [{"emblem": "cat"}, {"shape": (0.0,) * 8}, {"second": "black"}], ids=lambda change: next(iter(change))
)
def test_people_see_what_no_title_says(catalog, change):
    wanted = next(v.product for v in catalog.versions if v.product.emblem == "star" and v.product.second == "white")
    twin = replace(wanted, product_id="another")
    assert looks(wanted, twin) == pytest.approx(1)
    assert attraction(wanted, wanted) > attraction(wanted, twin) > 1.3 * attraction(wanted, replace(twin, **change))


def test_a_search_before_anything_is_on_sale_is_not_made():
    lonely = plan_demo(DemoSpec(listings=1, days=2, sessions=40))
    listed = lonely.versions[0].listing.updated_at
    assert all(found.session.searched_at >= listed for found in plan_sessions(lonely))


def test_more_days_spread_the_listings_wider():
    long = plan_demo(DemoSpec(listings=200, days=10))
    assert long.versions[-1].listing.updated_at - long.versions[0].listing.updated_at > timedelta(days=8)
