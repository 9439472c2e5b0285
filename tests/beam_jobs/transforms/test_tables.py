"""Tables in a pipeline: every row of a version is read once, whatever files it lies in, and of some items only theirs.

Jobs read a version while others merge and compact: what they read must be what they began with. And they look up a few items
in a large table again and again: what is not asked for must not be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import items_of, listing, put_items

from beam_jobs.transforms.tables import ReadItems, ReadTable
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.tables import Table, places_of
from listing_lens.lake.windows import Lake

ENCODER = "small-12345678"


def vector(number: int) -> np.ndarray:
    return np.float32([number, 1, 0, 0])


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Items m00 to m19 in five files, of which m03 was replaced and m07 is sold; then m20."""
    lake = Lake(str(tmp_path_factory.mktemp("lake")))
    for first in range(0, 20, 5):
        numbers = range(first, first + 5)
        put_items(lake, ENCODER, [listing(f"m{n:02d}", price=n) for n in numbers], [vector(n) for n in numbers])
    replaced = [listing("m03", minute=5, price=103), listing("m07", minute=5, price=7)]
    put_items(lake, ENCODER, replaced, [vector(103), None])
    put_items(lake, ENCODER, [listing("m20", price=20)], [vector(20)])
    return lake


@pytest.fixture(scope="module")
def table(lake: Lake) -> Table:
    return Embeddings(lake, ENCODER).items


def latest(table: Table) -> int:
    version = table.version()
    assert version is not None
    return version


def pairs(batch: pa.RecordBatch) -> list[tuple[str, int]]:
    return list(zip(batch.column("item_id").to_pylist(), batch.column("price").to_pylist(), strict=True))


EVERY = [(f"m{n:02d}", 103 if n == 3 else n) for n in range(21)]


class TestReadTable:
    def test_reads_every_row_once(self, table: Table) -> None:
        with TestPipeline() as pipeline:
            rows = pipeline | ReadTable(table, latest(table), ["item_id", "price"]) | beam.FlatMap(pairs)
            assert_that(rows, equal_to(EVERY))

    def test_reads_only_the_columns_that_are_asked_for(self, table: Table) -> None:
        with TestPipeline() as pipeline:
            names = pipeline | ReadTable(table, latest(table), ["price"]) | beam.Map(lambda batch: batch.schema.names)
            assert_that(names | beam.Map(tuple) | beam.Distinct(), equal_to([("price",)]))

    def test_reads_a_version_as_it_was(self, table: Table) -> None:
        before = latest(table) - 2
        with TestPipeline() as pipeline:
            rows = pipeline | ReadTable(table, before, ["item_id", "price"]) | beam.FlatMap(pairs)
            assert_that(rows, equal_to([(f"m{n:02d}", n) for n in range(20)]))

    def test_reads_what_a_filter_lets_through(self, table: Table) -> None:
        with TestPipeline() as pipeline:
            read = ReadTable(table, latest(table), ["item_id", "price"], filter="embedding IS NOT NULL AND price > 15")
            assert_that(pipeline | read | beam.FlatMap(pairs), equal_to([p for p in EVERY if p[1] > 15]))

    def test_s_batches_are_no_larger_than_asked(self, table: Table) -> None:
        with TestPipeline() as pipeline:
            sizes = pipeline | ReadTable(table, latest(table), ["price"], batch_rows=2) | beam.Map(len)
            assert_that(sizes | beam.Filter(lambda size: size > 2), equal_to([]))
            assert_that(sizes | beam.CombineGlobally(sum), equal_to([21]), label="all")


def assert_looked_up(
    table: Table, version: int | None, wanted: Sequence[str], expected: Sequence[tuple[str, int]]
) -> None:
    with TestPipeline() as pipeline:
        rows = (
            pipeline
            | beam.Create([(item_id, None) for item_id in wanted])
            | ReadItems(table, places_of(table, version), ["item_id", "price"])
            | beam.FlatMap(pairs)
        )
        assert_that(rows, equal_to(list(expected)))


class TestReadItems:
    @given(wanted=st.sets(st.integers(0, 25)))
    @settings(max_examples=15, deadline=None)
    def test_reads_the_rows_of_these_items_and_no_others(self, table: Table, wanted: set[int]) -> None:
        ids = {f"m{n:02d}" for n in wanted}
        assert_looked_up(table, latest(table), sorted(ids), [pair for pair in EVERY if pair[0] in ids])

    def test_reads_a_version_as_it_was(self, table: Table) -> None:
        assert_looked_up(table, latest(table) - 2, ["m03", "m20"], [("m03", 3)])

    def test_of_no_table_reads_nothing(self, tmp_path: Path) -> None:
        assert_looked_up(Table(str(tmp_path / "none.lance"), "item_id"), None, ["m03"], [])

    def test_gives_embeddings_that_are_the_item_s_own(self, lake: Lake, table: Table) -> None:
        expected = items_of(lake, ENCODER)

        def check(batches: list[pa.RecordBatch]) -> None:
            rows = [row for batch in batches for row in batch.to_pylist()]
            assert {row["item_id"] for row in rows} == {"m03", "m07", "m11"}
            for row in rows:
                held = expected[row["item_id"]]["embedding"]
                assert (row["embedding"] is None) == (held is None)
                if held is not None:
                    np.testing.assert_array_equal(np.float32(row["embedding"]), held)

        with TestPipeline() as pipeline:
            batches = (
                pipeline
                | beam.Create([(item_id, None) for item_id in ("m03", "m07", "m11")])
                | ReadItems(table, places_of(table, latest(table)), ["item_id", "embedding"])
            )
            assert_that(batches, check)
