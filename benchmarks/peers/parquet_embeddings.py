"""Embeddings in plain Parquet files: float16, byte-stream split, zstd, 4,096 rows per group."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

_ROWS_PER_GROUP = 4096


def write(path: str, batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> None:
    """Write batches whose column `embedding` has no nulls."""
    number = pa.field("element", pa.float16(), nullable=False)
    at = schema.get_field_index("embedding")
    dims = schema.field("embedding").type.list_size
    schema = schema.set(at, pa.field("embedding", pa.list_(number, dims), nullable=False))
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
        column_encoding={"embedding.list.element": "BYTE_STREAM_SPLIT"},
    ) as writer:
        for batch in batches:
            embeddings = pa.FixedSizeListArray.from_arrays(
                batch.column("embedding").flatten(), type=schema.field(at).type
            )
            writer.write_table(
                pa.table([*batch.columns[:at], embeddings, *batch.columns[at + 1 :]], schema=schema),
                row_group_size=_ROWS_PER_GROUP,
            )


def read(path: str) -> Iterator[NDArray[np.float32]]:
    """The embeddings as (n, dims) float32; one batch iterator per row group, so that only one group is held at a time."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(_ROWS_PER_GROUP, row_groups=[group], columns=["embedding"]):
                column = batch.column(0)
                numbers = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
                yield numbers.reshape(len(column), column.type.list_size)
