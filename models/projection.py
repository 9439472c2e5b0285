"""The projection: a PCA that takes an embedding to the vector that is indexed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from itertools import count, takewhile
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from models.errors import LensError
from models.moments import Moments

if TYPE_CHECKING:
    from sklearn.decomposition import PCA

# The smallest squared length that single precision represents with all its digits.
_FAINT = 1e-30
# A variance that is a smaller share of the largest is not told from rounding, of the embeddings or of the fit; nor is one
# that is a smaller share of the mean's squared length, which single precision subtracts.
_RESOLVED = 1e-6
_RESOLVED_BESIDE_MEAN = 1e-8


@dataclass(frozen=True)
class Projection:
    """`normalise(x @ components + bias)`.

    Attributes:
        components: (d, k) float32, by decreasing variance; orthonormal columns, divided by their standard deviation if whitened.
        bias: (k,) float32, minus the projected mean.
        mean: (d,) float64, of the embeddings that it was fitted on.
        spectrum: (d,) float64, the variance along every principal axis, including those not kept.
        rows: how many embeddings it was fitted on.
        whitened: whether each kept axis is scaled to a variance of 1.
        encoder_id: whose embeddings they were; None if unknown.
    """

    components: NDArray[np.float32]
    bias: NDArray[np.float32]
    mean: NDArray[np.float64]
    spectrum: NDArray[np.float64]
    rows: int
    whitened: bool = False
    encoder_id: str | None = None

    @property
    def input_dims(self) -> int:
        return int(self.components.shape[0])

    @property
    def dims(self) -> int:
        return int(self.components.shape[1])

    @property
    def projection_id(self) -> str:
        """8 digits of the hash of its numbers: two fits, even of one encoder, are incompatible unless equal."""
        digest = hashlib.sha256(self.components.tobytes())
        digest.update(self.bias.tobytes())
        return digest.hexdigest()[:8]

    @property
    def axes(self) -> NDArray[np.float64]:
        """(d, k) float64, the kept axes at unit length, also of a whitened projection."""
        components = self.components.astype(np.float64)
        axes: NDArray[np.float64] = components / np.linalg.norm(components, axis=0)
        return axes

    @property
    def explained_variance_ratio(self) -> NDArray[np.float64]:
        """(k,) float64: the share of all variance along each kept axis."""
        ratio: NDArray[np.float64] = self.spectrum[: self.dims] / self.spectrum.sum()
        return ratio

    def prefix(self, dims: int) -> Projection:
        """Only the first axes: what a fit of the same embeddings to fewer dimensions would give."""
        return replace(self, components=np.ascontiguousarray(self.components[:, :dims]), bias=self.bias[:dims])

    def apply(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Project (n, d) embeddings to (n, k) float32 vectors of unit length; nothing else of that size is allocated.

        Raises:
            LensError: the embeddings do not have the dimensions that it was fitted on, or one holds a NaN or an infinity.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.components.shape[0]:
            raise LensError(
                f"projection {self.projection_id} takes embeddings of {self.input_dims} dimensions, "
                f"not an array of shape {embeddings.shape}: it belongs to another encoder"
            )
        vectors: NDArray[np.float32] = embeddings @ self.components
        vectors += self.bias
        squares = np.vecdot(vectors, vectors)
        # Their dot product with themselves is finite only if all of them are, and as cheap as their maximum.
        if not (squares.min(initial=1.0) > _FAINT and squares.dot(squares) < np.inf):
            _give_length(vectors, squares)
        vectors /= np.sqrt(squares)[:, None]
        return vectors

    def as_pca(self) -> PCA:
        """As scikit-learn's fitted PCA, whose `transform` gives what `apply` computes before it normalises.

        Of a projection that was saved without its mean, `inverse_transform` lacks what the mean has outside the kept axes.
        """
        # Imported here: it takes a second, and nothing else needs it.
        from sklearn.decomposition import PCA

        pca = PCA(self.dims, whiten=self.whitened, svd_solver="covariance_eigh")
        kept = self.spectrum[: self.dims]
        pca.mean_ = self.mean
        pca.components_ = np.ascontiguousarray(self.axes.T)
        pca.explained_variance_ = kept
        pca.explained_variance_ratio_ = self.explained_variance_ratio
        pca.singular_values_ = np.sqrt(kept * (self.rows - 1))
        left_out = self.spectrum[self.dims : min(self.input_dims, self.rows)]
        pca.noise_variance_ = float(left_out.mean()) if left_out.size else 0.0
        pca.n_components_, pca.n_features_in_, pca.n_samples_ = self.dims, self.input_dims, self.rows
        return pca

    def save(self) -> tuple[bytes, bytes]:
        """The contents of two files: the arrays as safetensors, and JSON that describes them."""
        arrays = {"components": self.components, "bias": self.bias, "mean": self.mean, "spectrum": self.spectrum}
        tensors = save_tensors(arrays)
        about = {
            "projection_id": self.projection_id,
            "input_dims": self.input_dims,
            "dims": self.dims,
            "rows": self.rows,
            "explained_variance": float(self.explained_variance_ratio.sum()),
            "whitened": self.whitened,
            "encoder_id": self.encoder_id,
            "sha256": hashlib.sha256(tensors).hexdigest(),
        }
        return tensors, json.dumps(about, indent=2).encode()

    @classmethod
    def load(cls, tensors: bytes, about: bytes) -> Projection:
        """Inverse of `save`, to the bit.

        Raises:
            LensError: the JSON does not describe a projection, or the arrays are not the ones that it describes.
        """
        try:
            description = json.loads(about)
            projection_id, sha256, rows = (description[name] for name in ("projection_id", "sha256", "rows"))
        except (ValueError, TypeError, KeyError) as err:
            raise LensError(
                f"a projection's description is damaged ({err}): restore it, or fit the projection again"
            ) from None
        if hashlib.sha256(tensors).hexdigest() != sha256:
            raise LensError(f"projection {projection_id} is damaged: its hash differs; fit it again")
        arrays = load_tensors(tensors)
        components, bias = arrays["components"], arrays["bias"]
        # Files without a mean hold projections that are not whitened: within the kept axes, the mean is minus the bias.
        mean = arrays["mean"] if "mean" in arrays else -(components.astype(np.float64) @ bias)
        whitened = description.get("whitened", False)
        return cls(components, bias, mean, arrays["spectrum"], rows, whitened, description.get("encoder_id"))


def fit_projection(
    moments: Moments,
    dims: int | None = None,
    *,
    explained_variance: float | None = None,
    whiten: bool = False,
    encoder_id: str | None = None,
) -> Projection:
    """Exact PCA from the moments, by eigendecomposition of the covariance in float64.

    Each axis is oriented so that its largest entry is positive: equal data give an equal projection.

    Args:
        moments: of the embeddings.
        dims: how many axes to keep.
        explained_variance: keep as few axes as hold this share of all variance, above 0 and below 1; instead of `dims`.
        whiten: scale each kept axis to a variance of 1.
        encoder_id: whose embeddings they are.

    Raises:
        LensError: fewer embeddings than it takes to span the axes, an impossible number or share of them, or axes to be
            whitened whose variance is lost in rounding.
    """
    check_fit(moments.count, moments.shift.size, dims, explained_variance)
    spectrum, axes = np.linalg.eigh(moments.covariance)
    spectrum, axes = np.maximum(spectrum[::-1], 0.0), axes[:, ::-1]
    if spectrum[0] <= 0:
        raise LensError(f"all {moments.count} embeddings are equal: there is no direction to keep")
    if dims is None:
        assert explained_variance is not None
        held = np.cumsum(spectrum)
        # This many embeddings span no more axes; anything beyond is rounding error.
        dims = min(int((held < explained_variance * held[-1]).sum()) + 1, moments.count - 1)
    kept = axes[:, :dims]
    kept = kept * np.sign(kept[np.abs(kept).argmax(axis=0), np.arange(dims)])
    if whiten:
        least = max(_RESOLVED * spectrum[0], _RESOLVED_BESIDE_MEAN * float(moments.mean @ moments.mean))
        resolved = int((spectrum >= least).sum())
        if dims > resolved:
            raise LensError(
                f"axes beyond the first {resolved} hold too little variance beside the largest one's, or beside the mean, "
                f"and whitening would blow up their rounding: keep {resolved} dimensions or fewer, or fit without whitening"
            )
        kept = kept / np.sqrt(spectrum[:dims])
    return Projection(
        components=np.ascontiguousarray(kept, dtype=np.float32),
        bias=(-moments.mean @ kept).astype(np.float32),
        mean=moments.mean,
        spectrum=spectrum,
        rows=moments.count,
        whitened=whiten,
        encoder_id=encoder_id,
    )


def check_fit(rows: int, input_dims: int, dims: int | None, explained_variance: float | None) -> None:
    """Check that a fit of so many embeddings of so many dimensions can keep what it is asked for.

    Raises:
        LensError: it cannot.
    """
    if (dims is None) == (explained_variance is None):
        raise LensError("a projection keeps a number of dimensions or a share of the variance: give one of the two")
    if explained_variance is not None and not 0 < explained_variance < 1:
        raise LensError(f"cannot keep a share of {explained_variance} of the variance: give one between 0 and 1")
    if dims is not None and dims < 1:
        raise LensError(f"cannot keep {dims} dimensions: keep at least one")
    if dims is not None and dims > input_dims:
        raise LensError(f"cannot keep {dims} dimensions of embeddings that have {input_dims}: lower the number")
    fewest = 1 if dims is None else dims
    if rows <= fewest:
        raise LensError(
            f"{rows} embeddings cannot fit a projection to {fewest} dimensions: embed more windows first, "
            f"or keep fewer dimensions than embeddings"
        )


def prefix_dims(dims: int) -> tuple[int, ...]:
    """The powers of two from 8 up to below `dims`: the dimensions at which a projection is judged besides its own."""
    return tuple(takewhile(lambda fewer: fewer < dims, (2**power for power in count(3))))


def _give_length(vectors: NDArray[np.float32], squares: NDArray[np.float32]) -> None:
    """Scale, in place, vectors (n, k) whose squared length (n,) is lost in single precision."""
    lost = np.flatnonzero(~((squares > _FAINT) & (squares < np.inf)))
    scaled = vectors[lost]
    bad = lost[~np.isfinite(scaled).all(axis=1)]
    if bad.size:
        raise LensError(
            f"embedding {bad[0]} of {len(vectors)} holds a NaN, an infinity or what is near one: embed it again"
        )
    largest = np.abs(scaled).max(axis=1)
    scaled /= np.where(largest > 0, largest, 1.0)[:, None]
    # An embedding equal to the mean has no direction. It is given one: an index only takes unit vectors.
    scaled[largest == 0, 0] = 1.0
    vectors[lost], squares[lost] = scaled, np.vecdot(scaled, scaled)
