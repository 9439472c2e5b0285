"""Applying a projection, one row and many, against scikit-learn's `PCA.transform`, which does not normalise.

Prints the ratios of the median times, and the peak allocation beyond the input and the result.

    python -m benchmarks.apply_projection --rows 100000 --dims 768

Target: ten times as fast for one row, and at least as fast for many.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_info

from models.moments import Moments
from models.projection import fit_projection

_RUNS = 7
_ROWS_AT_ONCE = 2000

Apply = Callable[[NDArray[np.float32]], NDArray[np.floating]]


def main() -> None:
    """Alternate between the two, so that changes in the machine's speed affect both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dims", type=int, default=768)
    parser.add_argument("--kept", type=int, default=128)
    given = parser.parse_args()
    rows = np.random.default_rng(0).standard_normal((given.rows, given.dims), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    projection = fit_projection(Moments.of(rows), given.kept)
    # In float32, as scikit-learn fits float32 data: `as_pca` would convert every row.
    pca = PCA(given.kept, svd_solver="covariance_eigh").fit(rows)
    both: dict[str, Apply] = {"ours": projection.apply, "peer": pca.transform}
    threads = {library["num_threads"] for library in threadpool_info()}
    print(f"{given.dims} dimensions to {given.kept}, median of {_RUNS}, {threads} threads")
    print(f"  scikit-learn {sklearn.__version__}")
    for count, repeated in ((1, 2000), (_ROWS_AT_ONCE, 20), (given.rows, 1)):
        some = rows[:count]
        times = _medians(both, some, repeated)
        ratio = times["peer"] / times["ours"]
        print(
            f"  {count:,} rows: {times['ours'] * 1e6:,.1f} µs, PCA.transform {times['peer'] * 1e6:,.1f} µs: {ratio:.1f} times"
        )
    print(
        f"  allocated beyond the result: {_beyond_result(projection.apply, rows) / 2**20:.1f} MiB for {given.rows:,} rows"
    )


def _medians(both: dict[str, Apply], rows: NDArray[np.float32], repeated: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in both}
    for apply in both.values():
        apply(rows)
    for _ in range(_RUNS):
        for name, apply in both.items():
            start = time.perf_counter()
            for _ in range(repeated):
                apply(rows)
            times[name].append((time.perf_counter() - start) / repeated)
    return {name: statistics.median(values) for name, values in times.items()}


def _beyond_result(apply: Apply, rows: NDArray[np.float32]) -> int:
    tracemalloc.start()
    result = apply(rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak - result.nbytes


if __name__ == "__main__":
    main()
