"""Intervals of means: against scipy's bootstrap, and clusters that stay together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap

from models.intervals import bootstrap_mean, clusters_of


class TestBootstrap:
    def test_agrees_with_scipy_where_every_value_is_a_cluster(self) -> None:
        values = np.random.default_rng(5).beta(0.5, 0.7, 150)
        found = bootstrap_mean(values, np.arange(150))
        theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1))
        low, high = theirs.confidence_interval
        assert found.mean == pytest.approx(values.mean())
        # The bounds of 2,000 resamples scatter by some hundredths of the interval's width.
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.08 * (high - low))

    def test_is_wider_where_values_of_a_cluster_are_alike(self) -> None:
        levels = np.random.default_rng(6).random(30)
        values = np.repeat(levels, 5)
        apart, together = (
            bootstrap_mean(values, clusters) for clusters in (np.arange(150), np.repeat(np.arange(30), 5))
        )
        assert together.high - together.low > 1.5 * (apart.high - apart.low)
        assert together.mean == apart.mean

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.data())
    def test_is_the_same_again_and_holds_only_what_values_can_average_to(
        self, values: list[float], data: st.DataObject
    ) -> None:
        labels = data.draw(st.lists(st.integers(0, 5), min_size=len(values), max_size=len(values)))
        clusters = np.unique(labels, return_inverse=True)[1]
        found = bootstrap_mean(np.array(values), clusters)
        assert found == bootstrap_mean(np.array(values), clusters)
        assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9

    def test_of_nothing_is_undefined(self) -> None:
        with pytest.raises(ValueError, match="no values"):
            bootstrap_mean(np.array([]), np.array([], int))


class TestClusters:
    def test_share_a_group_directly_or_through_others(self) -> None:
        groups = [("a",), ("b", "c"), ("a",), ("d",), ("c", "d"), ("e",)]
        clusters = clusters_of(groups)
        assert clusters[0] == clusters[2]
        assert clusters[1] == clusters[3] == clusters[4]
        assert sorted(set(clusters.tolist())) == [0, 1, 2]

    @given(st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=3), min_size=1, max_size=12))
    def test_no_group_is_in_two(self, groups: list[list[str]]) -> None:
        clusters = clusters_of(groups)
        assert sorted(set(clusters.tolist())) == list(range(clusters.max() + 1))
        for name in "abcdef":
            assert len({int(cluster) for cluster, found in zip(clusters, groups, strict=True) if name in found}) <= 1
