"""The ledger of loads on a real node: an index lacks what changed after the version that its loads reach without a gap.

Loads of one index may overlap, be killed and be repeated; a line that was skipped would leave rows out of the index for good.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import NOW, remove_indexes

from listing_lens.errors import LensError
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.windows import Lake
from listing_lens.search.bulk import Written
from listing_lens.search.documents import Refusal
from listing_lens.search.index import SearchIndex
from listing_lens.search.loads import Load, Loads, Part
from listing_lens.settings import load_settings
from models.embedder import EmbedderCard

_CARD = EmbedderCard(encoder_source="x", encoder_id="x-1", encoder_dims=16, projection_id="p1", dims=4)


@pytest.fixture(scope="module")
def search_index(elasticsearch_url: str) -> Iterator[SearchIndex]:
    search_index = SearchIndex.connect(
        load_settings(elasticsearch_url=elasticsearch_url, alias=f"test-{uuid4().hex[:8]}", lake="unused")
    )
    search_index.create(_CARD, "one")
    yield search_index
    remove_indexes(search_index)


@pytest.fixture
def loads(search_index: SearchIndex) -> Loads:
    return new_ledger(search_index)


def new_ledger(search_index: SearchIndex) -> Loads:
    """The ledger of an index of its own, as far as the ledger can tell."""
    [index] = search_index.all()
    return Loads(search_index, replace(index, uuid=uuid4().hex))


def load(since: int, version: int, expected: int = 0) -> Load:
    return Load(since=since, version=version, expected=expected, forgets_before=None, started_at=NOW)


def finish(loads: Loads, *spans: tuple[int, int]) -> None:
    for since, version in spans:
        loads.begin(load(since, version))
        loads.finish(load(since, version), NOW)


def test_parts_are_remembered_until_the_load_is_finished_and_summed_up_in_it(loads: Loads) -> None:
    begun = load(0, 5, expected=30)
    loads.begin(begun)
    assert (loads.unfinished(), loads.parts_done(begun), loads.reached()) == (begun, set(), 0)
    parts = [Part(0, 0, 10), Part(0, 10, 10), Part(1, 0, 10)]
    for part in parts:
        # A part that is done again replaces its line.
        for _ in range(2):
            loads.record(begun, part, Written(9, written=7, stale=2), forgotten=1)
    assert loads.parts_done(begun) == set(parts)
    assert loads.progress().done == 30  # type: ignore[union-attr]
    finished = loads.finish(begun, NOW)
    assert finished.counts == {"read": 30, "written": 21, "stale": 6, "refused": 0, "forgotten": 3}
    assert (loads.all(), loads.unfinished(), loads.reached(), loads.parts_done(begun)) == ([finished], None, 5, set())


def test_a_load_whose_rows_are_not_all_accounted_for_does_not_finish_and_begins_afresh(loads: Loads) -> None:
    begun = load(0, 5, expected=30)
    loads.begin(begun)
    loads.record(begun, Part(0, 0, 10), Written(10, written=10), forgotten=0)
    with pytest.raises(LensError, match="30 rows were to go in, but the outcome is {'read': 10"):
        loads.finish(begun, NOW)
    assert (loads.reached(), loads.unfinished(), loads.parts_done(begun)) == (0, begun, set())


def test_what_was_refused_is_remembered_with_its_last_reason(loads: Loads) -> None:
    begun = load(0, 5, expected=2)
    loads.begin(begun)
    long_id = "x" * 600
    first, last = Refusal("a", 1, "it is too long"), Refusal("a", 2, "it is too short")
    for refusal in (first, last):
        loads.record(begun, Part(0), Written(2, refused=(refusal, Refusal(long_id, 1, "its id is too long"))), 0)
    loads.search_index.refresh(f"{loads.search_index.alias}.loads")
    assert loads.refusals("a") == [last]
    assert {refusal.item_id for refusal in loads.refusals()} == {"a", long_id}


def test_an_index_that_was_made_again_begins_afresh(search_index: SearchIndex, loads: Loads) -> None:
    finish(loads, (0, 5))
    again = new_ledger(search_index)
    assert (again.all(), again.reached(), again.refusals()) == ([], 0, [])
    loads.forget()
    assert loads.all() == []


def test_a_table_that_is_older_than_what_was_loaded_is_not_taken_for_up_to_date(loads: Loads, tmp_path: object) -> None:
    embeddings = Embeddings(Lake(str(tmp_path)), "x-1")
    with pytest.raises(LensError, match="holds no embeddings of x-1 yet"):
        loads.is_behind(embeddings)
    embeddings.items.merge(embeddings.schema(4, "float32"), [])
    latest = embeddings.require()
    assert loads.is_behind(embeddings)
    finish(loads, (0, latest))
    assert not loads.is_behind(embeddings)
    finish(loads, (latest, latest + 3))
    with pytest.raises(LensError, match="the lake was restored to an earlier time; rebuild the index"):
        loads.is_behind(embeddings)


@pytest.mark.parametrize(
    ("spans", "reached"),
    [
        ([(0, 5)], 5),
        ([(0, 5), (5, 9)], 9),
        ([(5, 9), (0, 5)], 9),
        ([(0, 5), (3, 9)], 9),
        ([(0, 9), (3, 5)], 9),
        ([(0, 5), (0, 9), (0, 5)], 9),
        # What changed from 5 to 6 is in no load.
        ([(0, 5), (6, 9)], 5),
        ([(5, 9)], 0),
    ],
    ids=["one", "one after the other", "told the wrong way", "overlapping", "within", "repeated", "a gap", "no first"],
)
def test_versions_are_reached_without_a_gap(loads: Loads, spans: list[tuple[int, int]], reached: int) -> None:
    finish(loads, *spans)
    assert loads.reached() == reached


@given(
    spans=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 4)).map(lambda s: (s[0], sum(s))), max_size=6),
)
@settings(max_examples=15)
def test_what_is_reached_is_covered_step_by_step(search_index: SearchIndex, spans: list[tuple[int, int]]) -> None:
    loads = new_ledger(search_index)
    finish(loads, *spans)
    reached = 0
    # A step from a version to the next is loaded by whatever span holds it.
    while any(since <= reached < version for since, version in spans):
        reached += 1
    assert loads.reached() == reached
