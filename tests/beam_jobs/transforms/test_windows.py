"""Windows in a pipeline: what landed is read as it was when the run began, and what is written appears at once or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import strategies as st
from tiny import FIRST, SECOND, image_root, land, land_sessions, land_unchecked, listing

from beam_jobs.transforms.windows import (
    CommitWindow,
    Landed,
    MostCommon,
    WindowTarget,
    WriteRecords,
    image_roots,
    landed_listings,
    landed_sessions,
    require_few_dead_letters,
)
from listing_lens.errors import LensError
from listing_lens.lake.records import Listing, Query, Refused, Session
from listing_lens.lake.window import Window
from listing_lens.lake.windows import LISTINGS, ROWS, SESSIONS, Lake

SCHEMA = pa.schema([pa.field("number", pa.int64(), nullable=False)])


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


class TestLanded:
    def find(self, lake: Lake, window: Window = FIRST, dataset: str = LISTINGS) -> Landed:
        [found] = Landed.find(lake, dataset, [window])
        return found

    def test_is_read_as_it_was_whatever_replaces_it(self, lake: Lake) -> None:
        land(lake, FIRST, [listing("before")])
        found = self.find(lake)
        land(lake, FIRST, [listing("after")])
        for part, expected in ((found, "before"), (self.find(lake), "after")):
            [read] = landed_listings(lake, part, FIRST)
            assert read.item_id == expected

    def test_that_is_absent_is_named(self, lake: Lake) -> None:
        with pytest.raises(LensError, match="listings of .* are not in the lake"):
            Landed.find(lake, LISTINGS, [FIRST])

    @given(offset=st.integers(-3000, 1439), parts=st.integers(1, 6))
    def test_gives_each_row_to_one_part_of_it(self, offset: int, parts: int) -> None:
        landed = Landed(FIRST, None)  # type: ignore[arg-type]
        moment = FIRST.start + timedelta(minutes=offset)
        taking = [part for part in FIRST.split(timedelta(hours=24) / parts) if landed.takes(moment, part)]
        assert len(taking) == 1
        if offset < 0:
            assert taking[0].start == FIRST.start

    def test_has_absolute_addresses_and_names_what_is_no_listing(self, lake: Lake) -> None:
        bad = asdict(listing("bad")) | {"status": "on_hold"}
        land_unchecked(lake, FIRST, [listing("a"), listing("web", image_uri="https://x.example/y.jpg"), bad])
        rows = list(landed_listings(lake, self.find(lake), FIRST))
        listings = {row.item_id: row.image_uri for row in rows if isinstance(row, Listing)}
        assert listings == {"a": f"{image_root(lake)}/a.jpg", "web": "https://x.example/y.jpg"}
        assert [row.item_id for row in rows if isinstance(row, Refused)] == ["bad"]

    def test_sessions_are_of_their_window_too(self, lake: Lake) -> None:
        made = [
            Session(name, FIRST.start + timedelta(hours=hour), Query((f"{name}.jpg",)), ("m",), (True,))
            for name, hour in (("late", -5), ("early", 1), ("noon", 13))
        ]
        land_sessions(lake, FIRST, made)
        part, halves = self.find(lake, dataset=SESSIONS), list(FIRST.split(timedelta(hours=12)))
        found = [[session.session_id for session in landed_sessions(lake, part, half)] for half in halves]
        assert found == [["late", "early"], ["noon"]]

    def test_s_image_roots_are_each_named_once(self, lake: Lake) -> None:
        for window in (FIRST, SECOND):
            land(lake, window, [])
        assert image_roots(Landed.find(lake, LISTINGS, [FIRST, SECOND])) == [image_root(lake)]


def _as_it_is(counts: dict[str, int], *, names: list[str]) -> tuple[dict[str, int], dict[str, Any]]:
    return counts, {}


class TestCommitWindow:
    """What is written is a window once a manifest names it, and only if it is judged to be one."""

    def run(self, lake: Lake, numbers: Sequence[int], seal: Any, **others: Sequence[Any]) -> None:
        target = WindowTarget(lake, "numbers", FIRST)
        with TestPipeline() as pipeline:
            records = pipeline | beam.Create(list(numbers))
            found = {
                "files": records | "Rows" >> beam.Map(lambda n: {"number": n}) | WriteRecords(target, ROWS, SCHEMA),
                "counts": records | "Count" >> beam.Map(lambda n: ("even" if n % 2 == 0 else "odd", 1)),
            }
            for name, elements in others.items():
                found[name] = pipeline | name >> beam.Create(list(elements))
            found | CommitWindow(target, seal)

    def test_commits_the_files_with_sums_and_what_was_sealed(self, lake: Lake) -> None:
        def seal(counts: dict[str, int], *, names: list[str]) -> tuple[dict[str, int], dict[str, Any]]:
            return counts | {"all": sum(counts.values())}, {"names": sorted(names)}

        self.run(lake, range(5000), seal, names=["b", "a"])
        manifest = lake.manifest("numbers", FIRST)
        assert manifest.counts == {"even": 2500, "odd": 2500, "all": 5000}
        assert manifest.parameters == {"names": ["a", "b"]}
        read = [n for batch in lake.read("numbers", [FIRST]) for n in batch.column("number").to_pylist()]
        assert sorted(read) == list(range(5000))

    def test_of_nothing_is_an_empty_window(self, lake: Lake) -> None:
        self.run(lake, [], _as_it_is, names=[])
        manifest = lake.manifest("numbers", FIRST)
        assert (manifest.files, manifest.counts) == ({}, {})
        assert list(lake.read("numbers", [FIRST])) == []

    def test_that_is_refused_leaves_the_window_as_it_was(self, lake: Lake) -> None:
        self.run(lake, [1], _as_it_is, names=[])
        before = lake.manifest("numbers", FIRST)

        def refuse(counts: dict[str, int], *, names: list[str]) -> tuple[dict[str, int], dict[str, Any]]:
            raise LensError(f"{counts['even']} too many")

        with pytest.raises(LensError, match="1 too many"):
            self.run(lake, [2], refuse, names=[])
        assert lake.manifest("numbers", FIRST) == before
        assert [batch.column("number").to_pylist() for batch in lake.read("numbers", [FIRST])] == [[1]]


@pytest.mark.parametrize(
    ("elements", "few"),
    [
        (["a"] * 5 + ["b"] * 2 + ["c"] * 4 + ["d"] * 3, [("a", 5), ("c", 4), ("d", 3)]),
        (["a"], [("a", 1)]),
        ([], []),
    ],
    ids=["many", "one", "none"],
)
def test_the_commonest_few_come_in_one_list(elements: list[str], few: list[tuple[str, int]]) -> None:
    with TestPipeline() as pipeline:
        assert_that(pipeline | beam.Create(elements) | MostCommon(), equal_to([few]))


class TestFewDeadLetters:
    @pytest.mark.parametrize(
        ("dead", "tried"), [(0, 0), (1, 1), (1, 3), (10, 100)], ids=["none", "one of one", "one", "as many as may be"]
    )
    def test_are_let_pass(self, dead: int, tried: int) -> None:
        require_few_dead_letters(FIRST, dead, tried, [("gone", dead)], 0.1)

    @pytest.mark.parametrize(("dead", "tried"), [(2, 2), (2, 19), (11, 100)])
    def test_are_not_many(self, dead: int, tried: int) -> None:
        with pytest.raises(LensError, match=rf"{dead} of {tried} listings are unusable.*mostly: gone \({dead}\)$"):
            require_few_dead_letters(FIRST, dead, tried, [("gone", dead)], 0.1)
