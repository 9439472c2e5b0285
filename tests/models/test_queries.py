"""Queries of several parts: the vector of all is what ranks items by the weighted sum of the parts' similarities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.queries import QueryVectors

DIMS = 6


def units(count: int, seed: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).normal(size=(count, DIMS)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


seeds = st.integers(0, 2**32 - 1)
weights = st.floats(0, 1)


@given(seeds, st.integers(1, 5), st.booleans(), weights)
def test_it_has_unit_length_and_ranks_by_the_sum_of_the_similarities(
    seed: int, photos: int, is_written: bool, weight: float
) -> None:
    rows, items = units(photos + 1, seed), units(20, seed + 1)
    query = QueryVectors(rows[1:], rows[0] if is_written else None)

    found = query.together(weight)

    assert found.dtype == np.float32
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)
    mean = rows[1:].mean(axis=0)
    photo = items @ (mean / np.linalg.norm(mean))
    wanted = (1 - weight) * photo + weight * (items @ rows[0]) if is_written else photo
    length = wanted @ wanted / (wanted @ (items @ found))
    np.testing.assert_allclose(length * (items @ found), wanted, atol=1e-4)


def test_the_parts_alone() -> None:
    photo, text = units(2, 0)
    nothing = np.empty((0, DIMS), np.float32)
    np.testing.assert_allclose(QueryVectors(photo[None]).together(0.5), photo, atol=1e-6)
    np.testing.assert_allclose(QueryVectors(nothing, text).together(0.0), text, atol=1e-6)
    np.testing.assert_allclose(QueryVectors(photo[None], text).together(0.0), photo, atol=1e-6)
    np.testing.assert_allclose(QueryVectors(photo[None], text).together(1.0), text, atol=1e-6)


def test_the_order_of_photos_does_not_matter() -> None:
    photos = units(3, 1)
    np.testing.assert_allclose(QueryVectors(photos).together(0.5), QueryVectors(photos[::-1]).together(0.5), atol=1e-6)


def test_where_parts_cancel_each_other_the_photos_decide() -> None:
    photo = units(1, 2)
    np.testing.assert_allclose(QueryVectors(photo, -photo[0]).together(0.5), photo[0], atol=1e-6)
    np.testing.assert_allclose(QueryVectors(np.vstack([photo, -photo])).together(0.5), photo[0], atol=1e-6)
