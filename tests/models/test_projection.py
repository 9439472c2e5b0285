"""The projection: a fit is scikit-learn's exact PCA in float64, and what it saves comes back or is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import reduce

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors
from sklearn.decomposition import PCA
from tiny import correlated

from models.errors import LensError
from models.moments import Moments
from models.projection import Projection, fit_projection, prefix_dims

Rows = NDArray[np.float32]


def fitted(rows: Rows, dims: int) -> Projection:
    return fit_projection(Moments.of(rows), dims)


@pytest.fixture(scope="module")
def projection() -> Projection:
    return fitted(correlated(500, 12), 5)


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

    @pytest.mark.parametrize(
        ("mean", "deviations"),
        [
            pytest.param(0.0, 0.98 ** np.arange(64), id="falling"),
            pytest.param(1.0, 0.01 * 0.98 ** np.arange(64), id="far from the origin"),
            pytest.param(0.0, np.geomspace(1, 1e-6, 64), id="variances over 12 orders"),
            pytest.param(0.3, np.ones(64), id="all alike"),
        ],
    )
    def test_loses_no_more_than_a_millionth_of_what_float64_finds(
        self, mean: float, deviations: NDArray[np.float64]
    ) -> None:
        rng = np.random.default_rng(3)
        axes = np.linalg.qr(rng.standard_normal((64, 64)))[0]
        rows = (mean + (rng.standard_normal((9000, 64)) * deviations) @ axes).astype(np.float32)
        exact = PCA(16, svd_solver="covariance_eigh").fit(rows.astype(np.float64))
        ours = fitted(rows, 16)
        assert np.abs(ours.spectrum[:16] - exact.explained_variance_).max() <= 1e-6 * exact.explained_variance_[0]
        captured = np.trace(ours.axes.T @ np.cov(rows.astype(np.float64), rowvar=False) @ ours.axes)
        assert captured >= (1 - 1e-6) * exact.explained_variance_.sum()

    def test_fewer_rows_than_dimensions_span_what_they_can(self) -> None:
        rows = correlated(20, 50)
        projection = fitted(rows, 19)
        reference = PCA(19, svd_solver="full").fit(rows.astype(np.float64))
        np.testing.assert_allclose(projection.spectrum[:19], reference.explained_variance_, rtol=1e-5)
        np.testing.assert_allclose(projection.spectrum[19:], 0, atol=1e-6 * projection.spectrum[0])

    @pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
    def test_keeps_as_few_axes_as_hold_a_share_of_the_variance(self, share: float) -> None:
        rows = correlated(300, 12)
        projection = fit_projection(Moments.of(rows), explained_variance=share)
        assert projection.dims == PCA(share, svd_solver="full").fit(rows.astype(np.float64)).n_components_
        held = np.cumsum(projection.explained_variance_ratio)
        assert held[-1] >= share
        assert projection.dims == 1 or held[-2] < share

    def test_keeps_no_axis_that_the_rows_do_not_span(self) -> None:
        moments = Moments.of(correlated(20, 50))
        assert fit_projection(moments, explained_variance=1 - 1e-12).dims == 19

    @pytest.mark.parametrize(
        ("wanted", "sentence"),
        [
            ({"explained_variance": 0.0}, "share of 0.0"),
            ({"explained_variance": 1.0}, "share of 1.0"),
            ({"dims": 3, "explained_variance": 0.5}, "give one of the two"),
            ({}, "give one of the two"),
        ],
    )
    def test_what_says_nothing_of_what_to_keep_is_refused(self, wanted: dict[str, float], sentence: str) -> None:
        with pytest.raises(LensError, match=sentence):
            fit_projection(Moments.of(correlated(50, 6)), **wanted)  # type: ignore[arg-type]


class TestWhitening:
    def test_gives_every_axis_a_variance_of_one(self) -> None:
        rows = correlated(4000, 10, mean=1.0, scale=0.1)
        plain, white = fitted(rows, 6), fit_projection(Moments.of(rows), 6, whiten=True)
        projected = rows.astype(np.float64) @ white.components + white.bias
        np.testing.assert_allclose(np.cov(projected, rowvar=False), np.eye(6), atol=1e-4)
        assert white.whitened
        assert white.projection_id != plain.projection_id
        np.testing.assert_allclose(white.axes, plain.axes, atol=1e-6)

    def test_is_still_a_product_a_sum_and_a_normalisation(self) -> None:
        rows = correlated(400, 10)
        white = fit_projection(Moments.of(rows), 6, whiten=True)
        wanted = rows @ white.components + white.bias
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
        np.testing.assert_allclose(white.apply(rows), wanted, atol=1e-6)

    def test_refuses_axes_that_are_rounding_and_says_how_many_are_not(self) -> None:
        rows = correlated(500, 8)
        rows[:, 5] = rows[:, 2]
        with pytest.raises(LensError, match="first 7 hold .*keep 7 dimensions or fewer, or fit without whitening"):
            fit_projection(Moments.of(rows), 8, whiten=True)
        assert fit_projection(Moments.of(rows), 7, whiten=True).dims == 7

    def test_refuses_axes_that_a_far_mean_leaves_no_digits_of(self) -> None:
        rows = correlated(500, 8, scale=1e-5)
        assert fit_projection(Moments.of(rows), 4, whiten=True).dims == 4
        with pytest.raises(LensError, match="first 0 hold .*beside the mean"):
            fit_projection(Moments.of(rows + np.float64(1)), 4, whiten=True)


class TestPrefix:
    def test_is_the_fit_to_fewer_dimensions(self) -> None:
        rows = correlated(300, 20)
        whole, fewer = fitted(rows, 12), fitted(rows, 5)
        assert whole.prefix(5).projection_id == fewer.projection_id
        assert whole.prefix(5).apply(rows).tobytes() == fewer.apply(rows).tobytes()

    def test_is_taken_at_powers_of_two(self) -> None:
        by_dims = {dims: prefix_dims(dims) for dims in (1, 8, 9, 100, 128)}
        assert by_dims == {1: (), 8: (), 9: (8,), 100: (8, 16, 32, 64), 128: (8, 16, 32, 64)}


@pytest.mark.parametrize("whiten", [False, True], ids=["plain", "whitened"])
class TestAsPca:
    def test_transforms_as_the_projection_does_before_it_normalises(self, whiten: bool) -> None:
        rows, fresh = correlated(400, 16, mean=1.0, scale=0.1), correlated(30, 16, mean=1.0, scale=0.1, seed=9)
        projection = fit_projection(Moments.of(rows), 6, whiten=whiten)
        transformed = projection.as_pca().transform(fresh)
        np.testing.assert_allclose(transformed, fresh @ projection.components + projection.bias, atol=1e-5)

    def test_is_what_scikit_learn_would_have_fitted(self, whiten: bool) -> None:
        rows = correlated(400, 16, mean=1.0, scale=0.1)
        ours = fit_projection(Moments.of(rows), 6, whiten=whiten).as_pca()
        theirs = PCA(6, svd_solver="covariance_eigh", whiten=whiten).fit(rows.astype(np.float64))
        assert vars(theirs).keys() - vars(ours).keys() <= {"_fit_svd_solver"}
        for name in ("n_components_", "n_features_in_", "n_samples_"):
            assert getattr(ours, name) == getattr(theirs, name)
        for name in (
            "mean_",
            "explained_variance_",
            "explained_variance_ratio_",
            "singular_values_",
            "noise_variance_",
        ):
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-5)
        np.testing.assert_allclose(np.abs(ours.components_), np.abs(theirs.components_), atol=1e-5)
        fresh = correlated(30, 16, mean=1.0, scale=0.1, seed=9)
        back = [pca.inverse_transform(pca.transform(fresh)) for pca in (ours, theirs)]
        np.testing.assert_allclose(*back, atol=1e-5)


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

    @pytest.mark.parametrize("scale", [1e-15, 1e-25, 1e-40])
    def test_what_is_too_faint_to_be_squared_keeps_its_direction(self, scale: float) -> None:
        eye = np.eye(3, dtype=np.float32)
        projection = Projection(eye, np.zeros(3, np.float32), np.zeros(3), np.ones(3), 9)
        rows = np.array([[1, 0, 0], [3 * scale, 0, -4 * scale], [0, 0, 0]], np.float32)
        np.testing.assert_allclose(projection.apply(rows), [[1, 0, 0], [0.6, 0, -0.8], [1, 0, 0]], rtol=1e-4)

    def test_a_row_that_is_no_number_is_named(self, projection: Projection) -> None:
        rows = correlated(9, 12)
        rows[4, 2] = np.nan
        with pytest.raises(LensError, match="embedding 4 of 9 holds a NaN"):
            projection.apply(rows)

    def test_leaves_what_it_is_given(self, projection: Projection) -> None:
        rows = correlated(9, 12)
        before = rows.copy()
        projection.apply(rows)
        np.testing.assert_array_equal(rows, before)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
    def test_an_embedding_that_is_no_number_is_named(self, projection: Projection, bad: float) -> None:
        rows = correlated(5, 12)
        rows[3, 4] = bad
        if np.isfinite(bad):
            rows[3] = bad
        with np.errstate(all="ignore"), pytest.raises(LensError, match="embedding 3 of 5 holds"):
            projection.apply(rows)

    def test_a_long_embedding_gets_a_length_of_one(self, projection: Projection) -> None:
        rows = correlated(5, 12)
        rows[3] *= 1e20
        with np.errstate(over="ignore"):
            vectors = projection.apply(rows)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        wanted = rows[3].astype(np.float64) @ projection.components
        np.testing.assert_allclose(vectors[3], wanted / np.linalg.norm(wanted), atol=1e-5)

    @pytest.mark.parametrize("shape", [(3, 11), (3, 13), (12,), (1, 1, 12)], ids=str)
    def test_another_encoders_embeddings_are_refused(self, projection: Projection, shape: tuple[int, ...]) -> None:
        with pytest.raises(LensError, match=r"takes embeddings of 12 dimensions.*belongs to another encoder"):
            projection.apply(np.zeros(shape, np.float32))


class TestFiles:
    def test_come_back_to_the_bit(self, projection: Projection) -> None:
        loaded = Projection.load(*projection.save())
        for name in ("components", "bias", "mean", "spectrum"):
            ours, theirs = getattr(projection, name), getattr(loaded, name)
            assert (ours.dtype, ours.tobytes()) == (theirs.dtype, theirs.tobytes())
        assert (loaded.rows, loaded.projection_id) == (projection.rows, projection.projection_id)
        assert loaded.apply(correlated(9, 12)).tobytes() == projection.apply(correlated(9, 12)).tobytes()

    def test_describe_themselves(self, projection: Projection) -> None:
        about = json.loads(projection.save()[1])
        assert about["projection_id"] == projection.projection_id
        assert (about["input_dims"], about["dims"], about["rows"]) == (12, 5, 500)
        assert about["explained_variance"] == pytest.approx(projection.explained_variance_ratio.sum())

    def test_say_whose_embeddings_they_are_for(self) -> None:
        for encoder_id in (None, "small-12345678"):
            saved = fit_projection(Moments.of(correlated(60, 8)), 3, encoder_id=encoder_id).save()
            assert Projection.load(*saved).encoder_id == encoder_id

    @pytest.mark.parametrize(
        "about", [b"", b'{"projection_id":', b"[]", b"{}"], ids=["empty", "cut", "no object", "bare"]
    )
    def test_a_damaged_description_is_refused(self, projection: Projection, about: bytes) -> None:
        with pytest.raises(LensError, match="description is damaged"):
            Projection.load(projection.save()[0], about)

    def test_say_whether_it_is_whitened(self) -> None:
        for whiten in (False, True):
            saved = fit_projection(Moments.of(correlated(60, 8)), 3, whiten=whiten).save()
            assert json.loads(saved[1])["whitened"] is whiten
            assert Projection.load(*saved).whitened is whiten

    def test_of_before_means_and_whitening_were_saved_still_load(self, projection: Projection) -> None:
        tensors = save_tensors({name: getattr(projection, name) for name in ("components", "bias", "spectrum")})
        about = {"projection_id": projection.projection_id, "rows": 500, "sha256": hashlib.sha256(tensors).hexdigest()}
        loaded = Projection.load(tensors, json.dumps(about).encode())
        rows = correlated(9, 12)
        assert loaded.projection_id == projection.projection_id
        assert not loaded.whitened
        assert loaded.apply(rows).tobytes() == projection.apply(rows).tobytes()
        np.testing.assert_allclose(loaded.as_pca().transform(rows), projection.as_pca().transform(rows), atol=1e-6)

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
