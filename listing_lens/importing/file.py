"""A user's catalog file, CSV or Parquet, read row by row."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from listing_lens.errors import LensError
from listing_lens.importing.row import COLUMNS, REQUIRED

_BATCH_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Numbered:
    """A row as it is in the file. ``place`` tells a person where: ``line 12`` or ``row 12``."""

    place: str
    # By column; None if the row has another number of cells than the header.
    values: dict[str, Any] | None


def read_source(file: Path) -> Iterator[Numbered]:
    """All rows of a file, in order; memory is bounded by a batch.

    Raises:
        LensError: the file cannot be read, or lacks a column.
    """
    if not file.is_file():
        raise LensError(f"{file} is not a file")
    if file.suffix.lower() in (".parquet", ".pq"):
        return _read_parquet(file)
    if file.suffix.lower() == ".csv":
        return _read_csv(file)
    raise LensError(f"{file.name}: only .csv and .parquet files can be imported")


def _read_csv(file: Path) -> Iterator[Numbered]:
    # utf-8-sig accepts UTF-8 with or without the byte order mark that spreadsheets write.
    with file.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            present = check_columns(file, header)
            start = reader.line_num + 1
            for cells in reader:
                if cells:
                    values = dict(zip(header, cells, strict=True)) if len(cells) == len(header) else None
                    yield Numbered(f"line {start}", values and {name: values[name] for name in present})
                start = reader.line_num + 1
        except UnicodeDecodeError as err:
            raise LensError(f"{file.name} is not UTF-8 text ({err.reason}): save it as CSV in UTF-8") from err
        except csv.Error as err:
            raise LensError(f"{file.name}, line {reader.line_num}: {err}") from err


def _read_parquet(file: Path) -> Iterator[Numbered]:
    try:
        with pq.ParquetFile(file) as parquet:
            present = check_columns(file, parquet.schema_arrow.names)
            number = 0
            for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=present):
                for values in _in_microseconds(batch).to_pylist():
                    number += 1
                    yield Numbered(f"row {number}", values)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as err:
        raise LensError(f"{file.name} cannot be read as Parquet: {err}") from err


def _in_microseconds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Truncate nanoseconds, which Python's datetime does not have."""
    fields = [
        field.with_type(pa.timestamp("us", tz=field.type.tz)) if pa.types.is_timestamp(field.type) else field
        for field in batch.schema
    ]
    return batch.cast(pa.schema(fields), safe=False)


def check_columns(file: Path, names: Sequence[str]) -> list[str]:
    """The columns of `Row` that a file has; others are ignored.

    Raises:
        LensError: a required column is missing, or a column is there twice.
    """
    for column in COLUMNS:
        if names.count(column) > 1:
            raise LensError(f"{file.name} has the column {column} {names.count(column)} times")
        if column in names or column not in REQUIRED:
            continue
        near = difflib.get_close_matches(column, [name for name in names if name not in COLUMNS], n=1)
        hint = f"rename {near[0]!r} if that is it" if near else f"its columns are {', '.join(names) or 'none at all'}"
        raise LensError(f"{file.name} has no column {column}: {hint}")
    return [column for column in COLUMNS if column in names]
