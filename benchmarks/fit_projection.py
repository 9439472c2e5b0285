"""Fitting a projection from merged moments, against scikit-learn's PCA and IncrementalPCA on the same rows.

Prints the ratios of the median times; the largest error of an eigenvalue, as a share of the largest one, against PCA in
float64, also on embeddings far from the origin (mean 1.0, deviation 0.01); and the peak memory of fits of increasing size,
each in its own process.

    python -m benchmarks.fit_projection --rows 200000 --dims 768

Targets: at least 15 times as fast as IncrementalPCA with its own batches of five times the dimensions, at most twice the time
of PCA in float32, errors of at most 1e-6, and a peak that does not grow with the rows.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.decomposition import PCA, IncrementalPCA
from threadpoolctl import threadpool_info

from models.moments import Moments
from models.projection import fit_projection

_RUNS = 5
_BATCH = 16_384
# IncrementalPCA would take minutes for all rows, at constant time per batch; only ours has a final eigendecomposition.
_INCREMENTAL_BATCHES = 16
_MEMORY_ROWS = (100_000, 500_000, 2_000_000)

Rows = NDArray[np.float32]


def main() -> None:
    """Alternate between all of them, so that changes in the machine's speed affect all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dims", type=int, default=768)
    parser.add_argument("--kept", type=int, default=128)
    given = parser.parse_args()
    threads = {library["num_threads"] for library in threadpool_info()}
    print(f"{given.rows:,} rows of {given.dims} dimensions to {given.kept}, median of {_RUNS}, {threads} threads")
    print(f"  scikit-learn {sklearn.__version__}")
    _against_pca(given.rows, given.dims, given.kept)
    _against_incremental_pca(5 * given.dims, given.dims, given.kept)
    _memory(given.dims, given.kept)


def _against_pca(count: int, dims: int, kept: int) -> None:
    for name, mean, scale in (("about the origin", 0.0, 1.0), ("mean 1.0, deviation 0.01", 1.0, 0.01)):
        rows = next(_batches(count, dims, mean, scale, batch=count))

        def ours(rows: Rows = rows) -> NDArray[np.float64]:
            parts = (Moments.of(rows[start : start + _BATCH]) for start in range(0, len(rows), _BATCH))
            return fit_projection(reduce(Moments.merge, parts), kept).spectrum[:kept]

        def peer(rows: Rows = rows) -> NDArray[np.floating]:
            return PCA(kept, svd_solver="covariance_eigh").fit(rows).explained_variance_

        times = _medians({"ours": ours, "peer": peer})
        exact = PCA(kept, svd_solver="covariance_eigh").fit(rows.astype(np.float64)).explained_variance_
        errors = [np.abs(run() - exact).max() / exact[0] for run in (ours, peer)]
        print(f"  {name}: merged moments {times['ours']:.2f} s, PCA in float32 {times['peer']:.2f} s")
        print(f"    ratio {times['ours'] / times['peer']:.2f}; eigenvalue errors {errors[0]:.1e} and {errors[1]:.1e}")


def _against_incremental_pca(batch: int, dims: int, kept: int) -> None:
    batches = list(_batches(_INCREMENTAL_BATCHES * batch, dims, 0.0, 1.0, batch))

    def ours() -> None:
        fit_projection(reduce(Moments.merge, map(Moments.of, batches)), kept)

    def peer() -> None:
        incremental = IncrementalPCA(kept)
        for rows in batches:
            incremental.partial_fit(rows)

    times = _medians({"ours": ours, "peer": peer})
    print(
        f"  {len(batches)} batches of {batch:,}: moments and a fit {times['ours']:.2f} s, partial_fit {times['peer']:.2f} s"
    )
    print(f"    {times['peer'] / times['ours']:.1f} times as fast")


def _memory(dims: int, kept: int) -> None:
    # One process each: the peak of a process never decreases.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = {rows: pool.apply(_peak, (rows, dims, kept)) for rows in _MEMORY_ROWS}
    print("  peak memory: " + ", ".join(f"{rows:,} rows {peak / 2**20:.0f} MiB" for rows, peak in peaks.items()))


def _peak(count: int, dims: int, kept: int) -> int:
    """The peak memory, in bytes, of a process that fits streamed rows (Linux)."""
    moments = None
    for rows in _batches(count, dims, 0.0, 1.0, _BATCH):
        part = Moments.of(rows)
        moments = part if moments is None else moments.merge(part)
    assert moments is not None
    fit_projection(moments, kept)
    # Unlike getrusage's figure, this does not include what the parent held.
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def _batches(count: int, dims: int, mean: float, scale: float, batch: int) -> Iterator[Rows]:
    """Rows whose standard deviations decrease from 1 to 0.01 times the scale, axis by axis."""
    rng = np.random.default_rng(0)
    deviations = (scale * np.geomspace(1, 1e-2, dims)).astype(np.float32)
    for start in range(0, count, batch):
        rows = rng.standard_normal((min(batch, count - start), dims), dtype=np.float32)
        rows *= deviations
        rows += np.float32(mean)
        yield rows


def _medians(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(_RUNS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
