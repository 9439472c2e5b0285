"""The projection: what a fit must not lose (digits, rows, the order of merges) and what must not slip in (NaN, damage).

scikit-learn's PCA in float64 is the reference. Embeddings of real encoders sit far from the origin and close together, so
the badly conditioned case (mean 1.0, deviation 0.01) is the ordinary one; there a plain float32 covariance loses its
largest eigenvalue.
"""

from __future__ import annotations

import dataclasses
import json
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from models.errors import LensError
from models.moments import Moments
from models.projection import Projection, fit_projection

Rows = NDArray[np.float32]


def correlated(rows: int, dims: int, *, mean: float = 0.0, scale: float = 1.0, seed: int = 0) -> Rows:
    """Rows whose principal variances fall from axis to axis, so that each axis is determined."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((dims, dims)))[0]
    deviations = scale * 0.9 ** np.arange(dims)
    return (mean + (rng.standard_normal((rows, dims)) * deviations) @ axes).astype(np.float32)


def fitted(rows: Rows, dims: int) -> Projection:
    return fit_projection(Moments.of(rows), dims)


@pytest.fixture(scope="module")
def projection() -> Projection:
    return fitted(correlated(500, 12), 5)


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
        merged = parts[0]
        exact = block.astype(np.float64)
        covariance = np.cov(exact, rowvar=False).reshape(dims, dims)
        assert merged.count == rows
        np.testing.assert_allclose(merged.mean, exact.mean(axis=0), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(merged.covariance, covariance, atol=1e-6 * np.abs(covariance).max())

    @settings(max_examples=30)
    @given(offset=st.floats(-1000, 1000), seed=st.integers(0, 1000))
    def test_merging_parts_that_lie_far_apart(self, offset: float, seed: int) -> None:
        near, far = correlated(50, 4, seed=seed), correlated(30, 4, mean=offset, seed=seed + 1)
        covariance = np.cov(np.vstack([near, far]).astype(np.float64), rowvar=False)
        for merged in (Moments.of(near).merge(Moments.of(far)), Moments.of(far).merge(Moments.of(near))):
            np.testing.assert_allclose(merged.covariance, covariance, atol=1e-6 * np.abs(covariance).max())

    def test_more_rows_than_one_matrix_product_takes(self) -> None:
        rows = correlated(5000, 6, mean=1.0, scale=0.01)
        covariance = np.cov(rows.astype(np.float64), rowvar=False)
        np.testing.assert_allclose(Moments.of(rows).covariance, covariance, atol=1e-6 * np.abs(covariance).max())

    def test_far_from_the_origin_it_agrees_with_float64(self) -> None:
        rows = correlated(20_000, 32, mean=1.0, scale=0.01)
        reference = PCA(n_components=8, svd_solver="full").fit(rows.astype(np.float64))
        moments = reduce(Moments.merge, [Moments.of(part) for part in np.array_split(rows, 7)])
        ours = fit_projection(moments, 8)
        largest = reference.explained_variance_[0]
        assert np.abs(ours.spectrum[:8] - reference.explained_variance_).max() <= 1e-6 * largest
        # The cosines of the angles between the two subspaces.
        cosines = np.linalg.svd(reference.components_ @ ours.components.astype(np.float64), compute_uv=False)
        assert cosines.min() > 1 - 1e-6

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_a_row_that_is_no_number_is_named(self, value: float) -> None:
        rows = correlated(10, 3)
        rows[7, 1] = value
        with pytest.raises(LensError, match=r"embedding 7 .* NaN or an infinity"):
            Moments.of(rows)

    @pytest.mark.parametrize("shape", [(0, 3), (3,), (2, 3, 4)], ids=["no rows", "a vector", "a cube"])
    def test_what_is_no_matrix_of_rows_is_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(LensError, match="matrix of at least one row"):
            Moments.of(np.zeros(shape, np.float32))

    def test_two_encoders_are_not_merged(self) -> None:
        with pytest.raises(LensError, match="of 3 and of 4 dimensions"):
            Moments.of(correlated(5, 3)).merge(Moments.of(correlated(5, 4)))


class TestFit:
    @pytest.mark.parametrize(
        ("rows", "dims", "sentence"),
        [
            pytest.param(correlated(4, 8), 4, "4 embeddings cannot fit a projection to 4", id="as many rows as axes"),
            pytest.param(correlated(1, 8), 1, "1 embeddings cannot fit", id="one row"),
            pytest.param(correlated(50, 8), 9, "cannot keep 9 dimensions", id="more axes than dimensions"),
            pytest.param(correlated(50, 8), 0, "keep at least one", id="no axis"),
            pytest.param(correlated(50, 8), -1, "keep at least one", id="fewer than no axes"),
            pytest.param(np.full((50, 8), 0.1, np.float32), 2, "all 50 embeddings are equal", id="equal rows"),
        ],
    )
    def test_what_cannot_be_fitted_is_refused(self, rows: Rows, dims: int, sentence: str) -> None:
        with pytest.raises(LensError, match=sentence):
            fitted(rows, dims)

    def test_equal_rows_in_several_parts_are_refused(self) -> None:
        parts = [Moments.of(np.full((n, 4), 0.1, np.float32)) for n in (3, 20, 1)]
        with pytest.raises(LensError, match="all 24 embeddings are equal"):
            fit_projection(reduce(Moments.merge, parts), 2)

    def test_constant_and_doubled_columns_leave_orthonormal_axes(self) -> None:
        rows = correlated(200, 6)
        rows[:, 2] = 0.25
        rows[:, 4] = rows[:, 1]
        projection = fitted(rows, 6)
        np.testing.assert_allclose(projection.components.T @ projection.components, np.eye(6), atol=1e-5)
        assert np.isfinite(projection.apply(rows)).all()
        assert (projection.spectrum >= 0).all()
        np.testing.assert_allclose(projection.spectrum[4:], 0, atol=1e-6 * projection.spectrum[0])

    def test_equal_data_give_an_equal_projection_and_axes_point_one_way(self) -> None:
        rows = correlated(300, 10)
        first, second = fitted(rows, 4), fitted(rows.copy(), 4)
        assert first.projection_id == second.projection_id
        largest = np.abs(first.components).argmax(axis=0)
        assert (first.components[largest, np.arange(4)] > 0).all()

    def test_mirrored_data_give_the_same_axes(self) -> None:
        rows = correlated(300, 10)
        np.testing.assert_allclose(fitted(rows, 4).components, fitted(-rows, 4).components, atol=1e-5)

    def test_the_spectrum_is_of_all_axes_and_its_shares_are_of_all_variance(self) -> None:
        rows = correlated(300, 10)
        projection = fitted(rows, 4)
        reference = PCA().fit(rows.astype(np.float64))
        np.testing.assert_allclose(projection.spectrum, reference.explained_variance_, rtol=1e-5)
        np.testing.assert_allclose(
            projection.explained_variance_ratio, reference.explained_variance_ratio_[:4], rtol=1e-5
        )
        assert projection.rows == 300


class TestApply:
    def test_agrees_with_scikit_learn_up_to_sign(self) -> None:
        rows = correlated(400, 16, mean=1.0, scale=0.01)
        fresh = correlated(50, 16, mean=1.0, scale=0.01, seed=9)
        pca = PCA(n_components=6, svd_solver="full").fit(rows.astype(np.float64))
        wanted = pca.transform(fresh.astype(np.float64))
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
        ours = fitted(rows, 6).apply(fresh)
        signs = np.sign((wanted * ours).sum(axis=0))
        np.testing.assert_allclose(ours, wanted * signs, atol=1e-4)

    def test_vectors_are_float32_of_unit_length(self, projection: Projection) -> None:
        vectors = projection.apply(correlated(64, 12, seed=3))
        assert vectors.dtype == np.float32
        assert vectors.shape == (64, 5)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)

    def test_a_row_alone_gives_what_it_gives_among_others(self, projection: Projection) -> None:
        rows = correlated(33, 12, seed=4)
        alone = np.vstack([projection.apply(row[None]) for row in rows])
        np.testing.assert_allclose(alone, projection.apply(rows), atol=1e-6)

    def test_no_rows_give_no_vectors(self, projection: Projection) -> None:
        assert projection.apply(np.empty((0, 12), np.float32)).shape == (0, 5)

    def test_what_has_no_direction_is_given_one(self) -> None:
        eye = np.eye(2, dtype=np.float32)
        projection = Projection(eye, np.array([-1, -1], np.float32), np.ones(2), np.ones(2), 9)
        np.testing.assert_array_equal(projection.apply(np.ones((1, 2), np.float32)), [[1, 0]])

    @pytest.mark.parametrize("shape", [(3, 11), (3, 13), (12,), (1, 1, 12)], ids=str)
    def test_another_encoders_embeddings_are_refused(self, projection: Projection, shape: tuple[int, ...]) -> None:
        with pytest.raises(LensError, match=r"takes embeddings of 12 dimensions.*belongs to another encoder"):
            projection.apply(np.zeros(shape, np.float32))


class TestFiles:
    def test_come_back_to_the_bit(self, projection: Projection) -> None:
        loaded = Projection.load(*projection.save())
        for name in ("components", "bias", "spectrum"):
            ours, theirs = getattr(projection, name), getattr(loaded, name)
            assert (ours.dtype, ours.tobytes()) == (theirs.dtype, theirs.tobytes())
        assert (loaded.rows, loaded.projection_id) == (projection.rows, projection.projection_id)
        assert loaded.apply(correlated(9, 12)).tobytes() == projection.apply(correlated(9, 12)).tobytes()

    def test_describe_themselves(self, projection: Projection) -> None:
        about = json.loads(projection.save()[1])
        assert about["projection_id"] == projection.projection_id
        assert (about["input_dims"], about["dims"], about["rows"]) == (12, 5, 500)
        assert about["explained_variance"] == pytest.approx(projection.explained_variance_ratio.sum())

    @pytest.mark.parametrize("at", [0, 100, -1], ids=["first byte", "in the middle", "last byte"])
    def test_a_changed_byte_is_refused(self, projection: Projection, at: int) -> None:
        tensors, about = projection.save()
        damaged = bytearray(tensors)
        damaged[at] ^= 1
        with pytest.raises(LensError, match=f"{projection.projection_id} is damaged"):
            Projection.load(bytes(damaged), about)

    @pytest.mark.parametrize("kept", [0, 10, 0.5], ids=["nothing", "a few bytes", "half"])
    def test_a_cut_file_is_refused(self, projection: Projection, kept: float) -> None:
        tensors, about = projection.save()
        with pytest.raises(LensError, match="is damaged"):
            Projection.load(tensors[: int(kept if kept > 1 else kept * len(tensors))], about)


class TestIdentity:
    def test_is_of_what_it_computes(self, projection: Projection) -> None:
        assert dataclasses.replace(projection, rows=7, spectrum=np.zeros(12)).projection_id == projection.projection_id

    @pytest.mark.parametrize("part", ["components", "bias"])
    def test_changes_with_the_last_bit(self, projection: Projection, part: str) -> None:
        changed = getattr(projection, part).copy()
        changed.flat[3] = np.nextafter(changed.flat[3], np.float32(9))
        assert dataclasses.replace(projection, **{part: changed}).projection_id != projection.projection_id

    def test_does_not_depend_on_the_layout_in_memory(self, projection: Projection) -> None:
        other = dataclasses.replace(projection, components=np.asfortranarray(projection.components))
        assert other.projection_id == projection.projection_id
