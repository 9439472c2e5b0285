"""The lake: embeddings read and projected a second, against this machine's bandwidth, as float32 and as float16.

Three peers, in turn with the lake on the same thread: the files' bytes read as they are, as many bytes of numbers copied
in memory, and Parquet without compression or byte streams. Files are in the page cache, so that the code is measured and
not the disk. Prints ratios of the median times; then what the ways to store embeddings cost, and what float16 loses.

    python -m benchmarks.lake --rows 40000 --dims 768
"""

from __future__ import annotations

import argparse
import os

# Before NumPy is loaded: one thread for everything that is compared.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from listing_lens.lake.parquet import ROWS_PER_GROUP, encoding_options
from listing_lens.lake.records import EmbeddingDtype, Listing, Status, embedding_matrix, embeddings_table
from listing_lens.lake.window import Window
from listing_lens.lake.windows import Lake, embeddings
from models.projection import Moments, Projection, fit_projection

_RUNS = 5
_DATASET = embeddings("benchmark")
_START = datetime(2026, 1, 1, tzinfo=UTC)
_DTYPES: tuple[EmbeddingDtype, ...] = ("float32", "float16")
_QUERIES = 500


def main() -> None:
    """Write one window a dtype, measure in turn, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--dims", type=int, default=768)
    given = parser.parse_args()
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    rows = unit_vectors(given.rows, given.dims)
    projection = fit_projection(Moments.of(rows), min(128, given.dims))
    print(
        f"{given.rows:,} embeddings of {given.dims} dimensions, one thread, pyarrow {pa.__version__}, median of {_RUNS}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for dtype in _DTYPES:
            measure_reading(Lake(f"{folder}/{dtype}"), rows, dtype, projection)
        measure_encodings(Path(folder), rows)
    measure_loss(rows)


def unit_vectors(count: int, dims: int) -> np.ndarray:
    """Unit vectors (count, dims) float32 about a common mean, whose variance falls along random axes as images' does."""
    rng = np.random.default_rng(0)
    axes, _ = np.linalg.qr(rng.standard_normal((dims, dims)))
    falling = (np.arange(1, dims + 1) ** -0.6).astype(np.float32)
    rows = (rng.standard_normal((count, dims), dtype=np.float32) * falling) @ axes.astype(np.float32)
    rows += rng.standard_normal(dims).astype(np.float32) * np.linalg.norm(falling) / dims**0.5
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def measure_reading(lake: Lake, rows: np.ndarray, dtype: EmbeddingDtype, projection: Projection) -> None:
    """Print embeddings a second read, read and projected, and what shares of the bandwidths that is."""
    window = Window(_START, _START + timedelta(hours=1))
    table = as_table(rows, dtype)
    lake.write_table(_DATASET, window, table, _START)
    [path] = lake.paths(_DATASET, [window])
    numbers = rows.astype(dtype)
    copied = np.zeros_like(numbers)
    peer = f"{lake.root}/peer.parquet"
    pq.write_table(table, peer, ROWS_PER_GROUP, compression="none", use_dictionary=False)

    def read() -> None:
        for batch in lake.read(_DATASET, [window], ["embedding"]):
            embedding_matrix(batch)

    def read_and_project() -> None:
        for batch in lake.read(_DATASET, [window], ["embedding"]):
            projection.apply(embedding_matrix(batch))

    def project() -> None:
        for start in range(0, len(rows), ROWS_PER_GROUP):
            projection.apply(rows[start : start + ROWS_PER_GROUP])

    def read_plain() -> None:
        for _ in pq.ParquetFile(peer).iter_batches(ROWS_PER_GROUP, columns=["embedding"]):
            pass

    def read_bytes() -> None:
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 23):
                pass

    seconds = medians(
        {
            "read": read,
            "read and projected": read_and_project,
            "projected, from memory": project,
            "plain Parquet": read_plain,
            "bytes of the file": read_bytes,
            "copied in memory": lambda: np.copyto(copied, numbers),
        }
    )
    print(f"{dtype}: {os.path.getsize(path) / len(rows):,.0f} bytes an embedding")
    for name, taken in seconds.items():
        print(
            f"  {name + ':':<24} {len(rows) / taken:>12,.0f} embeddings/s, {numbers.nbytes / taken / 1e6:>8,.0f} MB/s"
        )
    for name in ("read", "read and projected"):
        shares = (f"{seconds[peer] / seconds[name]:.2f} of {peer}" for peer in list(seconds)[2:])
        print(f"  {name}, as a share of the rate: {', '.join(shares)}")


def measure_encodings(folder: Path, rows: np.ndarray) -> None:
    """Print what ways of storing the column take: bytes as a share of the numbers', and time to write and to read."""
    for dtype in _DTYPES:
        table = as_table(rows[:20_000], dtype).select(["embedding"])
        split = {"embedding.list.element": "BYTE_STREAM_SPLIT"}
        plain = {"use_dictionary": False, "write_statistics": False}
        ways = {
            "the lake's": encoding_options(table.schema),
            "zstd": {**plain, "compression": "zstd"},
            "zstd, dictionary": {"compression": "zstd"},
            "split alone": {**plain, "compression": "none", "column_encoding": split},
            "none": {**plain, "compression": "none"},
        }
        paths = {name: str(folder / f"{dtype}-{number}.parquet") for number, name in enumerate(ways)}

        def write_as(name: str, table: pa.Table = table, ways: dict = ways, paths: dict = paths) -> None:
            pq.write_table(table, paths[name], ROWS_PER_GROUP, **ways[name])

        def read_as(name: str, paths: dict = paths) -> None:
            for _ in pq.ParquetFile(paths[name]).iter_batches(ROWS_PER_GROUP):
                pass

        written = medians({name: lambda name=name: write_as(name) for name in ways})  # type: ignore[misc]
        read = medians({name: lambda name=name: read_as(name) for name in ways})  # type: ignore[misc]
        raw = len(table) * rows.shape[1] * np.dtype(dtype).itemsize
        for name in ways:
            print(
                f"{dtype}, {name + ':':<18} {os.path.getsize(paths[name]) / raw:.3f} of the numbers' bytes, "
                f"written at {raw / written[name] / 1e6:,.0f} MB/s, read at {raw / read[name] / 1e6:,.0f} MB/s"
            )


def measure_loss(rows: np.ndarray) -> None:
    """Print how far float16 moves embeddings, and how many of the ten nearest stay the same in an exact search."""
    stored = rows.astype(np.float16).astype(np.float32)
    cosine = np.einsum("ij,ij->i", rows.astype(np.float64), stored) / np.linalg.norm(stored.astype(np.float64), axis=1)
    queries = rows[:_QUERIES]
    exact, found = nearest(queries, rows), nearest(stored[:_QUERIES], stored)
    recall = np.mean([len({*a} & {*b}) / 10 for a, b in zip(exact, found, strict=True)])
    print(
        f"float16 loses: 1 − cosine {np.mean(1 - cosine):.1e} on average, {np.max(1 - cosine):.1e} at most; "
        f"recall@10 of exact search {recall:.4f}"
    )


def nearest(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The ten nearest other rows of queries that are the first rows, (n, 10)."""
    scores = queries @ rows.T
    np.fill_diagonal(scores, -np.inf)
    return np.argpartition(-scores, 10, axis=1)[:, :10]


def as_table(rows: np.ndarray, dtype: EmbeddingDtype) -> pa.Table:
    """Rows as listings with embeddings."""
    return embeddings_table(
        [Listing(f"m{n:09d}", "", (), 1, "", Status.ON_SALE, _START, _START) for n in range(len(rows))], rows, dtype
    )


def medians(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each, run in turn so that a change of the machine's speed meets all; once before, to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(_RUNS + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


if __name__ == "__main__":
    main()
