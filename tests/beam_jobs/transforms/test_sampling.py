"""Samples: the same in every run, each within every larger one, and as large as was asked for."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa

from beam_jobs.transforms.sampling import is_sampled

ITEMS = pa.array([f"m{n:05d}" for n in range(20_000)])


def test_a_larger_sample_contains_the_smaller() -> None:
    sampled = [is_sampled(ITEMS, share, "salt") for share in (0.01, 0.1, 0.5, 1.0)]
    for smaller, larger in pairwise(sampled):
        assert (larger | ~smaller).all()
    np.testing.assert_allclose([one.mean() for one in sampled], [0.01, 0.1, 0.5, 1], atol=0.015)


def test_it_is_the_same_for_good() -> None:
    # A change of these is another sample of every lake.
    assert np.flatnonzero(is_sampled(ITEMS[:100], 0.1, "fit projection")).tolist() == [
        2,
        3,
        7,
        34,
        39,
        42,
        50,
        59,
        73,
        81,
        97,
    ]


def test_another_salt_samples_others() -> None:
    both = is_sampled(ITEMS, 0.1, "one") & is_sampled(ITEMS, 0.1, "another")
    np.testing.assert_allclose(both.mean(), 0.01, atol=0.004)
