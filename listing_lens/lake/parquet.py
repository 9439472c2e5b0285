"""How the lake writes Parquet: in row groups that a reader can stream, whatever the size of the batches written."""

from __future__ import annotations

from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

# A reader holds one row group at a time.
ROWS_PER_GROUP = 4096


class RowGroupWriter:
    """Writes tables of any length as row groups of `rows_per_group`; the last may be shorter."""

    def __init__(self, file: IO[bytes], schema: pa.Schema, rows_per_group: int = ROWS_PER_GROUP) -> None:
        self._schema = schema
        self._rows_per_group = rows_per_group
        self._rest: list[pa.Table] = []
        self._writer = pq.ParquetWriter(file, schema, compression="zstd")

    def write(self, table: pa.Table) -> None:
        """Add rows, cast to the schema."""
        self._rest.append(table.cast(self._schema))
        if sum(map(len, self._rest)) < self._rows_per_group:
            return
        rows = pa.concat_tables(self._rest)
        whole = len(rows) - len(rows) % self._rows_per_group
        self._write(rows.slice(0, whole))
        self._rest = [rows.slice(whole)]

    def close(self) -> None:
        """Write the remaining rows and the footer; the file object itself stays open."""
        self._write(pa.concat_tables(self._rest) if self._rest else self._schema.empty_table())
        self._writer.close()

    def _write(self, rows: pa.Table) -> None:
        if len(rows):
            self._writer.write_table(rows, row_group_size=self._rows_per_group)
