"""The lake: reading and fitting embeddings from an encoder's table, against Parquet; merging a window; scanning ids.

Each figure is measured in its own process, pinned to one core however many threads it has: seconds, and peak memory above the
level at the start. Files are in the page cache, so that the code is measured and not the disk; merged data is also flushed to
disk. Table and peer alternate; ratios are of the median times.

    python -m benchmarks.lake --rows 100000 400000 --merge 400000 --into 5000000
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.peers import parquet_embeddings
from listing_lens.lake.embeddings import NEWER, embedding_matrix, item_schema
from listing_lens.lake.tables import Table, scan

_RUNS = 5
_BATCH = 8192
_DIMS = 768
_SCHEMA = item_schema(_DIMS, "float16")
_PRESENT = "embedding IS NOT NULL"


def main() -> None:
    """Create the tables, measure alternately, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 400_000], help="sizes of the tables to read")
    parser.add_argument("--merge", type=int, default=400_000, help="rows of the window that is merged")
    parser.add_argument("--into", type=int, default=5_000_000, help="rows of the table that it is merged into; 0: none")
    parser.add_argument("--one", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        _measure_one(*given.one)
        return
    with tempfile.TemporaryDirectory() as folder:
        for rows in given.rows:
            _read(Path(folder), rows)
        if given.into:
            _merge(Path(folder), given.merge, given.into)


def _read(folder: Path, rows: int) -> None:
    table, peer = f"{folder}/{rows}.lance", f"{folder}/{rows}.parquet"
    Table(table, "item_id").merge(_SCHEMA, _batches(range(rows), 1))
    parquet_embeddings.write(peer, _batches(range(rows), 1), _SCHEMA)
    taken: dict[str, list[tuple[float, float]]] = {}
    for _ in range(_RUNS):
        for name, what, path in (
            ("read, Parquet", "parquet", peer),
            ("read", "table", table),
            ("fitted, Parquet", "fit-parquet", peer),
            ("fitted", "fit-table", table),
        ):
            taken.setdefault(name, []).append(_in_a_process(what, path))
    print(f"{rows:,} embeddings of {_DIMS} dimensions in float16, to float32, one core, median of {_RUNS}")
    for name, runs in taken.items():
        seconds, peak = (statistics.median(values) for values in zip(*runs, strict=True))
        print(f"  {name + ':':<17} {rows / seconds:>10,.0f} rows/s, {peak:>6.0f} MiB")
    for name in ("read", "fitted"):
        ours, theirs = ([statistics.median(v) for v in zip(*taken[n], strict=True)] for n in (name, f"{name}, Parquet"))
        print(f"  {name}: {theirs[0] / ours[0]:.2f} times Parquet's speed, {ours[1] / theirs[1]:.2f} of its memory")


def _merge(folder: Path, merged: int, into: int) -> None:
    path = f"{folder}/merge.lance"
    _in_a_process("fill", path, str(into))
    seconds, peak = _in_a_process("merge", path, str(merged), str(into), "2")
    written = _written(path)
    again, peak_again = _in_a_process("merge", path, str(merged), str(into), "2")
    ids, peak_ids = _in_a_process("ids", path)
    count = into + merged // 2
    print(f"{merged:,} rows merged into {into:,}, half of them new")
    print(f"  {seconds:.1f} s, {written / 1e6:,.0f} MB written ({written / merged:,.0f} bytes a row), {peak:,.0f} MiB")
    print(f"  the same again: {again:.1f} s, {peak_again:,.0f} MiB")
    print(f"  ids of {count:,} rows: {ids:.2f} s ({ids / count * 1e6:.2f} s a million), {peak_ids:,.0f} MiB")


def _in_a_process(*what: str) -> tuple[float, float]:
    """The seconds and MiB of one measurement."""
    command = ["taskset", "--cpu-list", "0", sys.executable, "-m", "benchmarks.lake", "--one", *what]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    found = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    seconds, peak = json.loads(found.stdout.splitlines()[-1])
    return seconds, peak


def _measure_one(what: str, path: str, *numbers: str) -> None:
    import lance  # noqa: F401
    import torch  # noqa: F401

    from models.moments import Moments

    def fit(matrices: Iterator[np.ndarray]) -> None:
        merged: Moments | None = None
        for matrix in matrices:
            moments = Moments.of(matrix)
            merged = moments if merged is None else merged.merge(moments)

    def through(matrices: Iterator[np.ndarray]) -> None:
        for _ in matrices:
            pass

    def merge(rows: str, into: str, version: str) -> None:
        some = np.random.default_rng(0).choice(int(into), int(rows) // 2, replace=False)
        numbers = [*np.sort(some).tolist(), *range(int(into), int(into) + int(rows) - len(some))]
        Table(path, "item_id").merge(_SCHEMA, _batches(numbers, int(version)), newer=NEWER)
        os.sync()

    with _Peak() as peak:
        started = time.perf_counter()
        if what == "table":
            through(_matrices(path))
        elif what == "parquet":
            through(parquet_embeddings.read(path))
        elif what == "fit-table":
            fit(_matrices(path))
        elif what == "fit-parquet":
            fit(parquet_embeddings.read(path))
        elif what == "fill":
            Table(path, "item_id").merge(_SCHEMA, _batches(range(int(numbers[0])), 1))
        elif what == "merge":
            merge(*numbers)
        elif what == "ids":
            sum(len(batch) for batch in scan(Table(path, "item_id").open(), ["item_id"], batch_size=65_536))
        seconds = time.perf_counter() - started
    print(json.dumps([seconds, peak.mebibytes]))


def _matrices(path: str) -> Iterator[np.ndarray]:
    for batch in scan(Table(path, "item_id").open(), ["embedding"], filter=_PRESENT):
        yield embedding_matrix(batch)


class _Peak:
    """The peak memory of this process above its level at the start, in MiB, sampled every 5 ms."""

    mebibytes = 0.0

    def __enter__(self) -> _Peak:
        self._began = _resident()
        self._ended = threading.Event()
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.005):
            self.mebibytes = max(self.mebibytes, (_resident() - self._began) / 1024)

    def __exit__(self, *about: object) -> None:
        self._ended.set()
        self._watching.join()


def _resident() -> int:
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


def _batches(numbers: range | list[int], version: int) -> Iterator[pa.RecordBatch]:
    """Items by number, with random unit vectors, generated batch by batch."""
    rng = np.random.default_rng(version)
    base = rng.standard_normal((_BATCH, _DIMS), dtype=np.float32)
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    halves = base.astype(np.float16)
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    for start in range(0, len(numbers), _BATCH):
        part = numbers[start : start + _BATCH]
        count = len(part)
        constant: dict[str, object] = {
            "title": "A coat of a brand in a colour, as good as new",
            "category": ["Fashion", "Coats"],
            "price": 4200,
            "status": "on_sale",
            "created_at": moment,
            "updated_at": moment,
            "seller_id": "seller",
            "product_id": None,
            "version": version,
            "window": "20260101T000000Z_20260101T010000Z",
            "photo": b"0123456789abcdef",
            "backend": "float32",
        }
        columns = {name: pa.array([value] * count, _SCHEMA.field(name).type) for name, value in constant.items()}
        columns["item_id"] = pa.array([f"m{number:011d}" for number in part])
        columns["image_uri"] = pa.array([f"gs://photos/m{number:011d}_1.jpg" for number in part])
        # A different order in each batch, so that compression cannot exploit repetition.
        shuffled = np.roll(halves[:count], start // _BATCH, axis=1)
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(shuffled.ravel()), _DIMS)
        yield pa.record_batch([columns[name] for name in _SCHEMA.names], schema=_SCHEMA)


def _written(path: str) -> int:
    """The size of a table's latest fragment and version, in bytes."""
    table = Table(path, "item_id").open()
    latest = max(table.get_fragments(), key=lambda fragment: fragment.fragment_id)
    return sum(os.path.getsize(f"{path}/data/{file.path}") for file in latest.data_files())


if __name__ == "__main__":
    main()
