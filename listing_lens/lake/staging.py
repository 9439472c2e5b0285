"""Staged rows, before they are merged: Arrow files of an attempt, which are not read until all of them are written."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from typing import IO, cast

import pyarrow as pa

from listing_lens.lake.windows import Lake

# Compressed, since the data crosses the network twice.
_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


class StagedFile:
    """A new file in a folder, written batch by batch; it is complete once it is closed."""

    def __init__(self, lake: Lake, folder: str, schema: pa.Schema) -> None:
        self.path = f"{folder}/{secrets.token_hex(8)}.arrow"
        self._file: IO[bytes] = lake.create(self.path)
        self._writer = pa.ipc.new_file(self._file, schema, options=_OPTIONS)

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows."""
        self._writer.write_batch(batch)

    def close(self) -> None:
        """Write the footer, and close the file."""
        self._writer.close()
        self._file.close()


def read_staged(lake: Lake, paths: Iterable[str], columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Stream staged files, batch by batch as written."""
    for path in paths:
        with lake.filesystem.open(path, "rb") as file, pa.ipc.open_file(cast("IO[bytes]", file)) as reader:
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                yield batch.select(columns) if columns else batch
