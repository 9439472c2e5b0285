"""Fitting a projection from merged moments, against scikit-learn's exact PCA in float64 on the same rows.

Prints the ratio of the median times, and the largest error of an eigenvalue as a share of the largest eigenvalue.

    python -m benchmarks.fit_projection --rows 100000 --dims 768
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import reduce

import numpy as np
import sklearn
from sklearn.decomposition import PCA

from models.moments import Moments
from models.projection import fit_projection

_RUNS = 5
_BLOCK = 4096


def main() -> None:
    """Run both in turn, so that a change of the machine's speed meets both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dims", type=int, default=768)
    parser.add_argument("--kept", type=int, default=128)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((given.rows, given.dims), dtype=np.float32) * np.geomspace(1, 1e-2, given.dims)
    rows = rows.astype(np.float32) + 1

    def ours() -> np.ndarray:
        blocks = (Moments.of(rows[start : start + _BLOCK]) for start in range(0, len(rows), _BLOCK))
        return fit_projection(reduce(Moments.merge, blocks), given.kept).spectrum[: given.kept]

    def peer() -> np.ndarray:
        pca = PCA(given.kept, svd_solver="covariance_eigh").fit(rows.astype(np.float64))
        return np.asarray(pca.explained_variance_)

    times: dict[str, list[float]] = {"ours": [], "peer": []}
    spectra = {"ours": ours(), "peer": peer()}
    for _ in range(_RUNS):
        for name, run in (("ours", ours), ("peer", peer)):
            times[name].append(_seconds(run))
    medians = {name: statistics.median(values) for name, values in times.items()}
    error = np.abs(spectra["ours"] - spectra["peer"]).max() / spectra["peer"][0]
    print(f"{given.rows:,} rows of {given.dims} dimensions to {given.kept}, median of {_RUNS}")
    print(f"  moments, merged in blocks of {_BLOCK}:  {medians['ours']:.2f} s")
    print(f"  scikit-learn {sklearn.__version__} float64:  {medians['peer']:.2f} s")
    print(f"  ratio: {medians['ours'] / medians['peer']:.2f}; eigenvalue error: {error:.1e} of the largest")


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
