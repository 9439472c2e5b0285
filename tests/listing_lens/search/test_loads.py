"""Records of loads: an index lacks what changed after the version that its loads reach without a gap, and nothing else.

Loads of one index may overlap, fail and be repeated; a record that was skipped would leave rows out of the index for good.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import NOW

from listing_lens.lake.windows import Lake
from listing_lens.search.loads import Load, loaded_version, loads_of, record_load


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


def load(since: int, version: int, index: str = "listings-one", minutes: int = 0) -> Load:
    counts = {"read": 3, "written": 2, "superseded": 1}
    finished = NOW + timedelta(minutes=minutes)
    return Load(index=index, since=since, version=version, counts=counts, started_at=NOW, finished_at=finished)


def test_a_record_can_be_read_back(lake: Lake) -> None:
    record_load(lake, load(0, 5))
    assert loads_of(lake, "listings-one") == [load(0, 5)]


def test_an_index_that_nothing_was_loaded_into_lacks_everything(lake: Lake) -> None:
    assert (loads_of(lake, "listings-one"), loaded_version(lake, "listings-one")) == ([], 0)


def test_records_are_each_index_s_own(lake: Lake) -> None:
    record_load(lake, load(0, 5, "listings-one"))
    record_load(lake, load(0, 7, "listings-one-more"))
    assert loaded_version(lake, "listings-one") == 5
    assert loaded_version(lake, "listings-one-more") == 7


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
def test_versions_are_reached_without_a_gap(lake: Lake, spans: list[tuple[int, int]], reached: int) -> None:
    for minute, (since, version) in enumerate(spans):
        record_load(lake, load(since, version, minutes=minute))
    assert loaded_version(lake, "listings-one") == reached


@given(
    spans=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 4)).map(lambda s: (s[0], sum(s))), max_size=6),
)
def test_what_is_reached_is_covered_step_by_step(
    spans: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    lake = Lake(str(tmp_path_factory.mktemp("lake")))
    for minute, (since, version) in enumerate(spans):
        record_load(lake, load(since, version, minutes=minute))
    reached = 0
    # A step from a version to the next is loaded by whatever span holds it.
    while any(since <= reached < version for since, version in spans):
        reached += 1
    assert loaded_version(lake, "listings-one") == reached
