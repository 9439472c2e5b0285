"""Moments: what they must not lose (digits, rows, the order of merges) and what must not slip in (NaN, an infinity).

Embeddings of real encoders sit far from the origin and close together, so the badly conditioned case (mean 1.0, deviation
0.01) is the ordinary one; there a plain float32 covariance loses its largest eigenvalue.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny import correlated

from models.errors import LensError
from models.moments import Moments

Rows = NDArray[np.floating[Any]]


def assert_moments(moments: Moments, rows: Rows, within: float = 1e-6) -> None:
    """They are those of the rows in float64, up to a share of the largest covariance."""
    exact = rows.astype(np.float64)
    covariance = np.atleast_2d(np.cov(exact, rowvar=False))
    assert moments.count == len(rows)
    np.testing.assert_allclose(moments.mean, exact.mean(axis=0), rtol=1e-6, atol=1e-6 * exact.std())
    np.testing.assert_allclose(moments.covariance, covariance, rtol=0, atol=within * np.abs(covariance).max())


class TestMoments:
    @settings(max_examples=60)
    @given(data=st.data(), rows=st.integers(2, 80), dims=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
    def test_any_split_merged_in_any_order_is_the_whole(
        self, data: st.DataObject, rows: int, dims: int, seed: int
    ) -> None:
        block = correlated(rows, dims, mean=1.0, scale=0.1, seed=seed)
        cuts = sorted(data.draw(st.sets(st.integers(1, rows - 1), max_size=6)))
        parts = data.draw(st.permutations([Moments.of(part) for part in np.split(block, cuts)]))
        # As a tree or as a chain: neighbours are merged in drawn order until one is left.
        while len(parts) > 1:
            at = data.draw(st.integers(0, len(parts) - 2))
            parts[at : at + 2] = [parts[at].merge(parts[at + 1])]
        assert_moments(parts[0], block)

    @settings(max_examples=30)
    @given(offset=st.floats(-1000, 1000), seed=st.integers(0, 1000))
    def test_merging_parts_that_lie_far_apart(self, offset: float, seed: int) -> None:
        near, far = correlated(50, 4, seed=seed), correlated(30, 4, mean=offset, seed=seed + 1)
        for merged in (Moments.of(near).merge(Moments.of(far)), Moments.of(far).merge(Moments.of(near))):
            assert_moments(merged, np.vstack([near, far]))

    def test_more_rows_than_one_matrix_product_takes(self) -> None:
        rows = correlated(5000, 6, mean=1.0, scale=0.01)
        assert_moments(Moments.of(rows), rows)

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_of_every_precision(self, dtype: type[np.floating]) -> None:
        rows = correlated(3000, 6, mean=1.0, scale=0.1).astype(dtype)
        moments = Moments.of(rows)
        assert_moments(moments, rows)
        assert {array.dtype for array in (moments.shift, moments.sum, moments.gram)} == {np.dtype(np.float64)}

    @pytest.mark.parametrize(
        "rows",
        [
            pytest.param(1e25 * correlated(3000, 6), id="squares overflow"),
            pytest.param(1e-25 * correlated(3000, 6), id="squares vanish"),
            # Equal terms: their sum is rounded to the same side each time.
            pytest.param(np.outer(np.resize([1.1, -1.1], 2048), np.ones(6)).astype(np.float32), id="rounding piles up"),
            # The diagonal is right to half of what is allowed there, what the unlike columns share is not.
            pytest.param(
                np.outer(np.resize([1, -1], 2048), np.repeat([1, 1.230454], 4)).astype(np.float32),
                id="off the diagonal",
            ),
            pytest.param(np.where(np.arange(2000)[:, None] == 7, 1e20, correlated(2000, 6)), id="one is very large"),
        ],
    )
    def test_what_single_precision_cannot_hold_is_taken_in_double(self, rows: Rows) -> None:
        rows = rows.astype(np.float32)
        for parts in (1, 3):
            merged = reduce(Moments.merge, [Moments.of(part) for part in np.array_split(rows, parts)])
            assert_moments(merged, rows, within=1e-9 if parts == 1 else 1e-6)

    def test_doubles_keep_what_they_have(self) -> None:
        rows = 1e6 + 1e-3 * correlated(3000, 6).astype(np.float64)
        parts = [Moments.of(part) for part in np.array_split(rows, 5)]
        assert_moments(reduce(Moments.merge, parts), rows)
        faint = 1e-60 * correlated(3000, 6).astype(np.float64)
        assert_moments(Moments.of(faint), faint)

    @pytest.mark.parametrize("value", [1e200, 1e308])
    def test_what_double_precision_cannot_hold_is_refused(self, value: float) -> None:
        rows = np.resize([value, -value, value], (10, 4))
        with pytest.raises(LensError, match="beyond double precision"):
            Moments.of(rows)

    def test_constant_and_doubled_columns(self) -> None:
        rows = correlated(5000, 6, mean=1.0, scale=0.01)
        rows[:, 2], rows[:, 4] = 0.1, rows[:, 1]
        moments = Moments.of(rows)
        assert_moments(moments, rows)
        np.testing.assert_array_equal(moments.covariance[2], 0)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("at", [7, 2500])
    def test_a_row_that_is_no_number_is_named(self, value: float, at: int) -> None:
        rows = correlated(3000, 3)
        rows[at, 1] = value
        with pytest.raises(LensError, match=rf"embedding {at} .* NaN or an infinity"):
            Moments.of(rows)

    @pytest.mark.parametrize("shape", [(0, 3), (3,), (2, 3, 4)], ids=["no rows", "a vector", "a cube"])
    def test_what_is_no_matrix_of_rows_is_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(LensError, match="matrix of at least one row"):
            Moments.of(np.zeros(shape, np.float32))

    def test_two_encoders_are_not_merged(self) -> None:
        with pytest.raises(LensError, match="of 3 and of 4 dimensions"):
            Moments.of(correlated(5, 3)).merge(Moments.of(correlated(5, 4)))
