"""Samples of pairs: their names, what a reader learns of one, and a fingerprint of content alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from listing_lens.errors import LensError
from listing_lens.lake.pairs import PAIR_SCHEMA, fingerprint, pair_content, pairs, pairs_info
from listing_lens.lake.window import Window
from listing_lens.lake.windows import Lake

NOW = datetime(2026, 11, 5, tzinfo=UTC)
FIRST = Window(datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 11, 2, tzinfo=UTC))
SECOND = Window(FIRST.end, FIRST.end + timedelta(days=1))
PAIR = ("train", "m1", "A coat", b"jpeg")


@pytest.fixture
def lake(tmp_path) -> Lake:
    return Lake(str(tmp_path))


def write(lake: Lake, window: Window) -> None:
    empty = pa.Table.from_pylist([], PAIR_SCHEMA)
    lake.write_table(pairs("autumn"), window, empty, NOW, counts={"train": 3}, parameters={"fingerprint": "0a1b"})


def test_a_sample_is_known_by_its_name(lake: Lake) -> None:
    write(lake, FIRST)
    info = pairs_info(lake, "autumn")
    assert (info.dataset, info.window, info.fingerprint, info.counts) == ("pairs/autumn", FIRST, "0a1b", {"train": 3})


def test_one_that_is_not_there_is_named_with_the_job_that_makes_it(lake: Lake) -> None:
    with pytest.raises(LensError, match=r"0 windows of pairs/autumn: .*beam_jobs.sample_pairs"):
        pairs_info(lake, "autumn")


def test_two_windows_of_a_name_are_refused(lake: Lake) -> None:
    write(lake, FIRST)
    write(lake, SECOND)
    with pytest.raises(LensError, match="2 windows of pairs/autumn: remove all but one"):
        pairs_info(lake, "autumn")


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", ".", "a b"])
def test_names_that_are_no_folder_s_are_refused(name: str) -> None:
    with pytest.raises(LensError, match="cannot be named"):
        pairs(name)


class TestFingerprints:
    @given(st.lists(st.integers(0, 2**128 - 1), max_size=8), st.randoms(), st.integers(0, 8))
    def test_know_no_order_and_no_shards(self, contents: list[int], random, cut: int) -> None:
        shuffled = random.sample(contents, len(contents))
        sharded = [sum(shuffled[:cut]), sum(shuffled[cut:])]
        assert fingerprint(contents) == fingerprint(shuffled) == fingerprint(sharded)
        assert len(fingerprint(contents)) == 16

    @pytest.mark.parametrize("place", range(4))
    def test_change_with_every_part_of_a_pair(self, place: int) -> None:
        other = tuple(value * 2 if here == place else value for here, value in enumerate(PAIR))
        assert fingerprint([pair_content(*PAIR)]) != fingerprint([pair_content(*other)])

    def test_change_when_a_pair_is_there_twice(self) -> None:
        once = pair_content(*PAIR)
        assert len({fingerprint([]), fingerprint([once]), fingerprint([once, once])}) == 3
