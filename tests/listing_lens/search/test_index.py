"""The index on a real node: versions decide what wins, the alias moves in one step, errors name what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import permutations
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from tiny import listing, remove_indexes

from listing_lens.errors import LensError
from listing_lens.lake.records import Status
from listing_lens.search.bulk import Written
from listing_lens.search.index import Held, Index, SearchIndex
from listing_lens.settings import load_settings
from models.embedder import EmbedderCard

_CARD = EmbedderCard(encoder_source="x", encoder_id="x-1", encoder_dims=16, projection_id="p1", dims=4)


@pytest.fixture
def search_index(elasticsearch_url: str) -> Iterator[SearchIndex]:
    settings = load_settings(elasticsearch_url=elasticsearch_url, alias=f"test-{uuid4().hex[:8]}")
    search_index = SearchIndex.connect(settings)
    yield search_index
    remove_indexes(search_index)


@pytest.fixture
def index(search_index: SearchIndex) -> Index:
    return search_index.create(_CARD, "b1")


def _unit(*values: float) -> np.ndarray:
    vector = np.array(values, np.float32)
    return vector / np.linalg.norm(vector)


def _held(search_index: SearchIndex, index: Index) -> list[tuple[str, float]]:
    search_index.finish_load(index.name)
    return [(hit.item_id, round(hit.score, 4)) for hit in search_index.search(index, _unit(1, 0, 0, 0), 10)]


def test_the_nearest_come_first_with_their_cosine(search_index: SearchIndex, index: Index) -> None:
    listings = [listing("far"), listing("near"), listing("middle")]
    search_index.write(index.name, listings, [_unit(-1, 0, 0, 0), _unit(1, 0, 0, 0), _unit(1, 1, 0, 0)])
    assert _held(search_index, index) == [("near", 1.0), ("middle", 0.7071), ("far", -1.0)]


def test_a_hit_says_what_the_listing_says(search_index: SearchIndex, index: Index) -> None:
    made = replace(listing("a"), title="<b>カップ</b>", category=("家", "台所"), price=980, status=Status.RESERVED)
    search_index.write(index.name, [made], [_unit(1, 0, 0, 0)])
    search_index.finish_load(index.name)
    [hit] = search_index.search(index, _unit(1, 0, 0, 0), 5)
    assert (hit.title, hit.category, hit.price, hit.status) == ("<b>カップ</b>", ("家", "台所"), 980, "reserved")


_HISTORY = [
    (listing("a", minute=1), _unit(1, 0, 0, 0)),
    (listing("a", minute=2, price=5), _unit(0, 1, 0, 0)),
    (listing("a", minute=3, status=Status.SOLD), None),
]


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_whatever_the_order_the_newest_version_remains(
    search_index: SearchIndex, index: Index, order: tuple[int, ...]
) -> None:
    for step in order:
        made, vector = _HISTORY[step]
        search_index.write(index.name, [made], [vector])
    assert search_index.versions(index.name, ["a"]) == {"a": (_HISTORY[2][0].version, "sold")}
    assert _held(search_index, index) == []


def test_a_listing_can_come_back_with_a_newer_version(search_index: SearchIndex, index: Index) -> None:
    search_index.write(index.name, [listing("a", minute=1, status=Status.SOLD)], [None])
    search_index.write(index.name, [listing("a", minute=2)], [_unit(1, 0, 0, 0)])
    assert _held(search_index, index) == [("a", 1.0)]
    assert search_index.counts(index.name) == {"searchable": 1, "removed": 0}


def test_what_is_stale_is_counted(search_index: SearchIndex, index: Index) -> None:
    new, old = listing("a", minute=2), listing("a", minute=1)
    assert search_index.write(index.name, [new], [_unit(1, 0, 0, 0)]) == Written(1, written=1)
    outcome = search_index.write(index.name, [old, new], [_unit(1, 0, 0, 0)] * 2)
    assert outcome == Written(2, written=1, stale=1)


def test_what_the_index_refuses_is_named_and_the_rest_is_written(search_index: SearchIndex, index: Index) -> None:
    outcome = search_index.write(index.name, [listing("bad"), listing("ok")], [_unit(1, 0, 0), _unit(1, 0, 0, 0)])
    assert (outcome.read, outcome.written) == (2, 1)
    [refusal] = outcome.refused
    assert refusal.item_id == "bad"
    assert "dimensions" in refusal.reason


def test_an_index_is_laid_out_as_the_settings_say_and_filled_without_replicas(elasticsearch_url: str) -> None:
    settings = load_settings(
        elasticsearch_url=elasticsearch_url,
        alias=f"test-{uuid4().hex[:8]}",
        index_shards=2,
        index_replicas="1",
        index_refresh="7s",
        index_options={"type": "int8_hnsw", "m": 8, "rescore_vector": {"oversample": 2.0}},
    )
    search_index = SearchIndex.connect(settings)

    def laid_out(name: str) -> tuple[str, ...]:
        found = search_index.client.indices.get_settings(index=name, flat_settings=True)[name]["settings"]
        keys = ("number_of_shards", "number_of_replicas", "auto_expand_replicas", "refresh_interval")
        return tuple(found[f"index.{key}"] for key in keys)

    try:
        index = search_index.create(_CARD, "b1")
        assert laid_out(index.name) == ("2", "0", "false", "-1")
        search_index.finish_load(index.name)
        assert laid_out(index.name) == ("2", "1", "false", "7s")
        options = search_index.mapping(index.name)["properties"]["vector"]["index_options"]
        assert (options["type"], options["m"], options["rescore_vector"]) == ("int8_hnsw", 8, {"oversample": 2.0})
    finally:
        remove_indexes(search_index)


def test_segments_are_merged(search_index: SearchIndex, index: Index) -> None:
    for name in "abc":
        search_index.write(index.name, [listing(name)], [_unit(1, 0, 0, 0)])
        search_index.refresh(index.name)
    task = search_index.start_merge(index.name, 1)
    while not search_index.is_merged(task):
        pass
    segments = search_index.client.indices.segments(index=index.name)["indices"][index.name]["shards"]["0"][0]
    assert len(segments["segments"]) == 1
    # The node that ran it has restarted.
    assert search_index.is_merged(f"{task.partition(':')[0]}:999999999")


class TestSwap:
    def test_that_was_planned_before_another_is_refused(self, search_index: SearchIndex, index: Index) -> None:
        """Also the first ones: there is nothing to remove the alias from that would tell."""
        second = search_index.create(_CARD, "b2")
        planned = search_index.epoch()
        search_index.swap(index.name, epoch=planned)
        with pytest.raises(LensError, match="was moved since the swap to .* was planned, and points to"):
            search_index.swap(second.name, epoch=planned)
        assert search_index.behind_alias() == [index.name]

    def test_that_goes_back_and_forth_meanwhile_is_noticed(self, search_index: SearchIndex, index: Index) -> None:
        second = search_index.create(_CARD, "b2")
        search_index.swap(index.name)
        planned = search_index.epoch()
        search_index.swap(second.name)
        search_index.swap(index.name)
        with pytest.raises(LensError, match="was moved since"):
            search_index.swap(second.name, epoch=planned)

    def test_that_was_carried_out_but_not_answered_is_done(self, search_index: SearchIndex, index: Index) -> None:
        planned = search_index.epoch()
        search_index.swap(index.name, epoch=planned)
        assert search_index.swap(index.name, epoch=planned) is None

    def test_is_one_request(self, search_index: SearchIndex, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
        search_index.swap(index.name)
        second = search_index.create(_CARD, "b2")
        requests: list[tuple[str, str]] = []
        perform = type(search_index.client.transport).perform_request

        def note(self: Any, method: str, target: str, **rest: Any) -> Any:
            requests.append((method, target))
            return perform(self, method, target, **rest)

        monkeypatch.setattr(type(search_index.client.transport), "perform_request", note)
        search_index.swap(second.name)
        assert [target for method, target in requests if method not in ("GET", "HEAD")] == ["/_aliases"]


def test_the_alias_moves_in_one_step_and_the_old_index_stays(search_index: SearchIndex, index: Index) -> None:
    assert search_index.live() is None
    assert search_index.swap(index.name) is None
    second = search_index.create(_CARD, "b2")
    assert search_index.swap(second.name) == index.name
    assert search_index.live() == second
    assert {found.name for found in search_index.all()} == {index.name, second.name}
    # And back, as a rollback would.
    assert search_index.swap(index.name) == second.name
    assert search_index.live() == index


def test_creating_again_takes_what_is_there(search_index: SearchIndex, index: Index) -> None:
    search_index.write(index.name, [listing("a")], [_unit(1, 0, 0, 0)])
    assert search_index.create(_CARD, "b1") == index
    assert len(search_index.versions(index.name, ["a"])) == 1


def test_the_live_index_cannot_be_deleted(search_index: SearchIndex, index: Index) -> None:
    search_index.swap(index.name)
    with pytest.raises(LensError, match="is live: swap the alias"):
        search_index.delete(index.name)


def test_an_alias_on_several_indexes_is_refused(search_index: SearchIndex, index: Index) -> None:
    second = search_index.create(_CARD, "b2")
    for name in (index.name, second.name):
        search_index.client.indices.put_alias(index=name, name=search_index.alias)
    with pytest.raises(LensError, match="points to 2 indexes"):
        search_index.live()


def test_swapping_repairs_an_alias_on_several_indexes(search_index: SearchIndex, index: Index) -> None:
    second = search_index.create(_CARD, "b2")
    for name in (index.name, second.name):
        search_index.client.indices.put_alias(index=name, name=search_index.alias)
    assert search_index.swap(second.name) == index.name
    assert search_index.live() == second


def test_a_load_into_an_index_that_was_deleted_fails_and_does_not_make_it_anew(
    search_index: SearchIndex, index: Index
) -> None:
    search_index.delete(index.name)
    with pytest.raises(LensError, match="was deleted or retired meanwhile"):
        search_index.write(index.name, [listing("a")], [_unit(1, 0, 0, 0)])
    assert search_index.all() == []


def test_a_query_of_another_dimension_is_refused(search_index: SearchIndex, index: Index) -> None:
    with pytest.raises(LensError, match=r"has vectors of 4 dimensions, the query has shape \(5,\)"):
        search_index.search(index, np.ones(5, np.float32), 1)


def test_no_live_index_says_how_to_get_one(search_index: SearchIndex) -> None:
    with pytest.raises(LensError, match="lens index rebuild"):
        search_index.require_live()


def test_an_index_without_a_space_is_not_one_of_ours(search_index: SearchIndex) -> None:
    name = f"{search_index.alias}-foreign"
    search_index.client.indices.create(index=name)
    try:
        with pytest.raises(LensError, match="does not name its vector space"):
            search_index.get(name)
        assert search_index.all() == []
    finally:
        search_index.client.indices.delete(index=name)


def test_an_unreachable_cluster_is_one_sentence() -> None:
    with pytest.raises(LensError, match="127.0.0.1:1 cannot be reached: start it with `lens up`"):
        SearchIndex.connect(load_settings(elasticsearch_url="http://127.0.0.1:1"))


def test_no_address_says_what_to_set() -> None:
    with pytest.raises(LensError, match="LENS_ELASTICSEARCH_URL is not set"):
        SearchIndex.connect(load_settings(elasticsearch_url=""))


def test_of_two_versions_of_one_time_the_same_one_remains_in_any_order(search_index: SearchIndex) -> None:
    on_sale, dearer = listing("a", minute=1), listing("a", minute=1, price=9999)
    sold = listing("a", minute=1, status=Status.SOLD)
    for n, order in enumerate(permutations([on_sale, dearer, sold])):
        index = search_index.create(_CARD, f"order-{n}")
        for made in order:
            search_index.write(index.name, [made], [_unit(1, 0, 0, 0) if made.searchable else None])
        assert search_index.versions(index.name, ["a"]) == {"a": (sold.version, "sold")}


def test_a_version_fits_elasticsearch_for_a_lifetime(search_index: SearchIndex, index: Index) -> None:
    last = listing("a", updated_at=datetime(2111, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC))
    search_index.write(index.name, [last], [_unit(1, 0, 0, 0)])
    assert search_index.versions(index.name, ["a"])["a"][0] == last.version


class TestWhatAVerificationLooksAt:
    def test_documents_give_versions_and_fields(self, search_index: SearchIndex, index: Index) -> None:
        made = listing("a", price=5)
        search_index.write(index.name, [made], [_unit(1, 0, 0, 0)])
        held = search_index.documents(index.name, ["a", "absent"], ["price", "category"])
        assert held == {"a": Held(made.version, {"price": 5, "category": ["A", "B"]})}

    def test_vectors_come_back_as_they_were_written(self, search_index: SearchIndex, index: Index) -> None:
        sold, vector = listing("sold", status=Status.SOLD), _unit(1, 2, 3, 4)
        search_index.write(index.name, [listing("a"), sold], [vector, None])
        search_index.finish_load(index.name)
        found = search_index.vectors(index.name, ["a", "sold", "absent"])
        assert found.keys() == {"a", "sold"}
        assert found["sold"] == (sold.version, None)
        assert found["a"][1] is not None
        np.testing.assert_array_equal(found["a"][1], vector)

    def test_a_scan_finds_what_was_searchable_when_it_began(self, search_index: SearchIndex, index: Index) -> None:
        listings = [listing(f"a{number}", minute=number) for number in range(7)]
        search_index.write(
            index.name, [*listings, listing("sold", status=Status.SOLD)], [*[_unit(1, 0, 0, 0)] * 7, None]
        )
        search_index.finish_load(index.name)
        batches = search_index.scan_searchable(index.name, batch_size=3)
        search_index.write(index.name, [listing("later")], [_unit(1, 0, 0, 0)])
        search_index.finish_load(index.name)
        scanned = list(batches)
        assert [len(batch) for batch in scanned] == [3, 3, 1]
        found = {one.item_id: one.updated_at for batch in scanned for one in batch}
        assert found == {made.item_id: made.updated_at for made in listings}

    def test_what_has_changed_since_its_scan_is_not_removed(self, search_index: SearchIndex, index: Index) -> None:
        search_index.write(index.name, [listing("a"), listing("b")], [_unit(1, 0, 0, 0)] * 2)
        search_index.finish_load(index.name)
        [batch] = search_index.scan_searchable(index.name)
        search_index.write(index.name, [listing("a", minute=1)], [_unit(1, 0, 0, 0)])
        assert search_index.remove(index.name, batch) == 1
        assert list(search_index.versions(index.name, ["a", "b"])) == ["a"]
