"""Parquet as the lake writes it: row groups of the length that was asked for, however the rows come."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from listing_lens.lake.parquet import RowGroupWriter

SCHEMA = pa.schema([pa.field("number", pa.int64(), nullable=False)])


def numbers(start: int, count: int) -> pa.Table:
    return pa.table({"number": pa.array(range(start, start + count), pa.int64())}, schema=SCHEMA)


def groups_of(file: io.BytesIO) -> list[int]:
    metadata = pq.read_metadata(file)
    return [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]


@given(st.lists(st.integers(0, 25), max_size=8), st.integers(1, 10))
def test_groups_are_full_however_the_rows_come(lengths: list[int], rows_per_group: int) -> None:
    file, start = io.BytesIO(), 0
    writer = RowGroupWriter(file, SCHEMA, rows_per_group)
    for length in lengths:
        writer.write(numbers(start, length))
        start += length
    writer.close()
    whole, rest = divmod(start, rows_per_group)
    assert groups_of(file) == [rows_per_group] * whole + [rest] * bool(rest)
    assert pq.read_table(file)["number"].to_pylist() == [*range(start)]
