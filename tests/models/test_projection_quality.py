"""Comparing projections: search is exact, recall is a share of sets, and angles are those that were turned by."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny import correlated

from models.errors import LensError
from models.moments import Moments
from models.projection import Projection, fit_projection
from models.projection_quality import nearest, neighbour_recall, principal_angles, scores, variance_held


def projection(axes: NDArray[np.float64], spectrum: list[float]) -> Projection:
    dims, kept = axes.shape
    return Projection(
        axes.astype(np.float32), np.zeros(kept, np.float32), np.zeros(dims), np.array(spectrum, dtype=float), rows=100
    )


def turned(degrees: float) -> NDArray[np.float64]:
    """The first two axes of four; the second is turned towards the third."""
    angle = np.radians(degrees)
    return np.array([[1, 0, 0, 0], [0, np.cos(angle), np.sin(angle), 0]]).T


class TestNearest:
    @settings(max_examples=40)
    @given(items=st.integers(2, 300), queries=st.integers(1, 150), k=st.integers(1, 20), seed=st.integers(0, 999))
    def test_is_what_sorting_all_finds(self, items: int, queries: int, k: int, seed: int) -> None:
        vectors = np.random.default_rng(seed).standard_normal((items, 8)).astype(np.float32)
        asked, k = np.arange(min(queries, items)), min(k, items - 1)
        scores = vectors[asked] @ vectors.T
        scores[asked, asked] = -np.inf
        found = nearest(vectors, asked, k)
        assert found.shape == (len(asked), k)
        np.testing.assert_allclose(
            np.take_along_axis(scores, found, axis=1), -np.sort(-scores, axis=1)[:, :k], rtol=1e-5
        )

    def test_leaves_the_query_itself_out(self) -> None:
        vectors = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]]
        assert nearest(vectors, np.array([1]), 1).tolist() == [[0]]

    @pytest.mark.parametrize("k", [0, 5, 6])
    def test_more_neighbours_than_there_are_is_refused(self, k: int) -> None:
        with pytest.raises(LensError, match=f"among 5 items none has {k} others"):
            nearest(np.eye(5, dtype=np.float32), np.arange(2), k)


def test_recall_is_the_share_of_the_nearest_that_was_found() -> None:
    exact = np.array([[0.9, 0.8, 0.7, 0.6], [0.5, 0.4, 0.3, 0.2]], np.float32)
    found = np.array([[0.8, 0.9, 0.1, 0.7], [0.1, 0.5, 0.2, 0.3]], np.float32)
    np.testing.assert_allclose(neighbour_recall(found, exact, 1), [0, 0])
    np.testing.assert_allclose(neighbour_recall(found, exact, 2), [1, 0.5])
    np.testing.assert_allclose(neighbour_recall(found, exact, 4), [0.75, 0.75])


def test_copies_of_one_photo_are_as_good_as_each_other() -> None:
    different = np.random.default_rng(0).standard_normal((40, 64)).astype(np.float32)
    vectors = np.repeat(different / np.linalg.norm(different, axis=1, keepdims=True), 25, axis=0)
    # 39 axes lose nothing of 40 points.
    projected = fit_projection(Moments.of(vectors), 39).apply(vectors)
    everyone = np.arange(len(vectors))
    exact, found = (scores(vectors, everyone, nearest(among, everyone, 24)) for among in (vectors, projected))
    for k in (1, 10, 24):
        np.testing.assert_allclose(neighbour_recall(found, exact, k), 1)


def test_scores_are_the_inner_products_of_what_was_found() -> None:
    vectors = correlated(20, 6)
    queries, found = np.array([3, 7]), np.array([[0, 5, 9], [1, 2, 3]])
    wanted = (vectors[queries] @ vectors.T)[np.arange(2)[:, None], found]
    np.testing.assert_allclose(scores(vectors, queries, found), wanted, rtol=1e-5)


class TestAngles:
    @pytest.mark.parametrize("degrees", [0, 0.001, 30, 90])
    def test_are_those_that_an_axis_was_turned_by(self, degrees: float) -> None:
        spectrum = [4.0, 1.0, 0.5, 0.1]
        before, after = projection(turned(0), spectrum), projection(turned(degrees), spectrum)
        np.testing.assert_allclose(principal_angles(after, before), [degrees, 0], atol=1e-5)
        # The first axis, with four fifths of the variance that is kept, did not move.
        held = (4 + np.cos(np.radians(degrees)) ** 2) / 5
        assert variance_held(after, before) == pytest.approx(held, abs=1e-6)

    def test_do_not_depend_on_the_axes_within_a_subspace(self) -> None:
        mixed = turned(0) @ np.array([[0.6, -0.8], [0.8, 0.6]])
        spectrum = [4.0, 1.0, 0.5, 0.1]
        np.testing.assert_allclose(
            principal_angles(projection(turned(0), spectrum), projection(mixed, spectrum)), 0, atol=1e-5
        )

    def test_are_taken_between_different_numbers_of_dimensions(self) -> None:
        moments = Moments.of(correlated(300, 12))
        more, fewer = fit_projection(moments, 8), fit_projection(moments, 3)
        np.testing.assert_allclose(principal_angles(more, fewer), np.zeros(3), atol=1e-4)
        assert variance_held(fewer, more) == pytest.approx(1)
        assert variance_held(more, fewer) == pytest.approx(more.spectrum[:3].sum() / more.spectrum[:8].sum())

    def test_are_the_same_for_a_whitened_projection(self) -> None:
        rows = correlated(300, 12)
        other = fit_projection(Moments.of(correlated(300, 12, seed=1)), 4)
        plain, white = (fit_projection(Moments.of(rows), 4, whiten=whiten) for whiten in (False, True))
        np.testing.assert_allclose(principal_angles(plain, other), principal_angles(white, other), atol=1e-4)
        assert variance_held(other, plain) == pytest.approx(variance_held(other, white), abs=1e-5)
