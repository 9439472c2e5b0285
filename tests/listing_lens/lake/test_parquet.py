"""Parquet as the lake writes it: row groups of the length that was asked for, and embeddings stored as byte streams."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from listing_lens.lake.parquet import RowGroupWriter
from listing_lens.lake.records import SESSION_SCHEMA, EmbeddingDtype, embedding_schema

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
    assert writer.groups == writer.metadata.num_row_groups == len(groups_of(file))
    assert pq.read_table(file)["number"].to_pylist() == [*range(start)]


def test_an_ended_group_is_short_and_an_empty_one_is_none() -> None:
    file = io.BytesIO()
    writer = RowGroupWriter(file, SCHEMA, 4)
    writer.end_group()
    writer.write(numbers(0, 6))
    writer.end_group()
    writer.end_group()
    writer.write(numbers(6, 4))
    writer.close()
    assert groups_of(file) == [4, 2, 4]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_embeddings_are_byte_streams_without_dictionary_or_statistics(dtype: EmbeddingDtype) -> None:
    field = embedding_schema(16, dtype).field("embedding")
    rows = np.random.default_rng(0).standard_normal((500, 16)).astype(dtype)
    table = pa.table({"embedding": pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), type=field.type)})
    file = io.BytesIO()
    writer = RowGroupWriter(file, pa.schema([field]))
    writer.write(table)
    writer.close()
    column = pq.read_metadata(file).row_group(0).column(0)
    assert (column.compression, column.has_dictionary_page, column.is_stats_set) == ("ZSTD", False, False)
    assert "BYTE_STREAM_SPLIT" in column.encodings
    read = pq.read_table(file)["embedding"].combine_chunks()
    np.testing.assert_array_equal(read.flatten().to_numpy(zero_copy_only=False).reshape(500, 16), rows)


def test_other_columns_keep_dictionary_and_statistics() -> None:
    file = io.BytesIO()
    writer = RowGroupWriter(file, SESSION_SCHEMA)
    moment = pa.scalar(0, SESSION_SCHEMA.field("searched_at").type).as_py()
    row = {
        "session_id": "s",
        "searched_at": moment,
        "query_image_uri": "q",
        "shown": ["a", "a"],
        "tapped": [True, False],
    }
    writer.write(pa.Table.from_pylist([row], schema=SESSION_SCHEMA))
    writer.close()
    group = pq.read_metadata(file).row_group(0)
    columns = {group.column(n).path_in_schema: group.column(n) for n in range(group.num_columns)}
    assert columns["shown.list.element"].has_dictionary_page
    assert columns["session_id"].is_stats_set
