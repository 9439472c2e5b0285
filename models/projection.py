"""The projection: a PCA that takes an embedding to the vector that is indexed.

Fitted from sufficient statistics that merge, so that a catalog of any size is read once, in any order, by any number of
workers (Chan, Golub and LeVeque 1983 for the merge of shifted sums).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from models.errors import LensError

# Rows per float32 matrix product: longer sums would lose digits before they reach float64.
_BLOCK_ROWS = 2048


@dataclass(frozen=True)
class Moments:
    """Count, sum (d,) and Gram matrix (d, d) of rows about a shift (d,), all in float64. Merging is commutative."""

    count: int
    shift: NDArray[np.float64]
    sum: NDArray[np.float64]
    gram: NDArray[np.float64]

    @classmethod
    def of(cls, rows: NDArray[np.floating[Any]]) -> Moments:
        """The moments of rows (n, d), n at least 1.

        Raises:
            LensError: the rows hold a NaN or an infinity, or are not a matrix.
        """
        if rows.ndim != 2 or not len(rows):
            raise LensError(f"embeddings must be a matrix of at least one row, not of shape {rows.shape}")
        if not np.isfinite(rows).all():
            bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
            raise LensError(f"embedding {bad} of the block holds a NaN or an infinity: embed its window again")
        shift = rows[:_BLOCK_ROWS].mean(axis=0, dtype=np.float64).astype(np.float32)
        dims = rows.shape[1]
        total, gram = np.zeros(dims), np.zeros((dims, dims))
        for start in range(0, len(rows), _BLOCK_ROWS):
            # About a shift near the mean the products stay small, and float32 keeps its digits.
            centred = rows[start : start + _BLOCK_ROWS].astype(np.float32, copy=False) - shift
            total += centred.sum(axis=0, dtype=np.float64)
            gram += centred.T @ centred
        return cls(len(rows), shift.astype(np.float64), total, gram)

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of rows together.

        Raises:
            LensError: they differ in dimensions.
        """
        if self.shift.shape != other.shift.shape:
            raise LensError(
                f"embeddings of {self.shift.size} and of {other.shift.size} dimensions in one fit: they are of two encoders"
            )
        moved = other.shift - self.shift
        return Moments(
            self.count + other.count,
            self.shift,
            self.sum + other.sum + other.count * moved,
            self.gram
            + other.gram
            + np.outer(other.sum, moved)
            + np.outer(moved, other.sum)
            + other.count * np.outer(moved, moved),
        )

    @property
    def mean(self) -> NDArray[np.float64]:
        """(d,) float64."""
        mean: NDArray[np.float64] = self.shift + self.sum / self.count
        return mean

    @property
    def covariance(self) -> NDArray[np.float64]:
        """Of the sample, (d, d) float64."""
        covariance: NDArray[np.float64] = (self.gram - np.outer(self.sum, self.sum) / self.count) / (self.count - 1)
        return covariance


@dataclass(frozen=True)
class Projection:
    """`normalise(x @ components + bias)`.

    Attributes:
        components: (d, k) float32, orthonormal columns, by falling variance.
        bias: (k,) float32, minus the projected mean.
        spectrum: (d,) float64, the variance along every principal axis, also those left out.
        rows: how many embeddings it was fitted on.
    """

    components: NDArray[np.float32]
    bias: NDArray[np.float32]
    spectrum: NDArray[np.float64]
    rows: int

    @property
    def input_dims(self) -> int:
        return int(self.components.shape[0])

    @property
    def dims(self) -> int:
        return int(self.components.shape[1])

    @property
    def projection_id(self) -> str:
        """8 digits of the hash of its numbers: two fits, even of one encoder, are strangers unless equal."""
        digest = hashlib.sha256(self.components.tobytes())
        digest.update(self.bias.tobytes())
        return digest.hexdigest()[:8]

    @property
    def explained_variance_ratio(self) -> NDArray[np.float64]:
        """(k,) float64: the share of all variance along each kept axis."""
        ratio: NDArray[np.float64] = self.spectrum[: self.dims] / self.spectrum.sum()
        return ratio

    def apply(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Project (n, d) embeddings to (n, k) float32 vectors of unit length.

        Raises:
            LensError: the embeddings have other dimensions than those it was fitted on.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.input_dims:
            raise LensError(
                f"projection {self.projection_id} takes embeddings of {self.input_dims} dimensions, "
                f"not an array of shape {embeddings.shape}: it belongs to another encoder"
            )
        vectors = embeddings @ self.components + self.bias
        # An embedding at the very mean has no direction. It is given one: an index takes unit vectors only.
        vectors[~vectors.any(axis=1), 0] = 1.0
        unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    def save(self) -> tuple[bytes, bytes]:
        """As two files' contents: the arrays as safetensors, and a JSON that describes them."""
        tensors = save_tensors({"components": self.components, "bias": self.bias, "spectrum": self.spectrum})
        about = {
            "projection_id": self.projection_id,
            "input_dims": self.input_dims,
            "dims": self.dims,
            "rows": self.rows,
            "explained_variance": float(self.explained_variance_ratio.sum()),
            "sha256": hashlib.sha256(tensors).hexdigest(),
        }
        return tensors, json.dumps(about, indent=2).encode()

    @classmethod
    def load(cls, tensors: bytes, about: bytes) -> Projection:
        """Inverse of `save`, to the bit.

        Raises:
            LensError: the arrays are not the ones that the JSON describes.
        """
        description = json.loads(about)
        if hashlib.sha256(tensors).hexdigest() != description["sha256"]:
            raise LensError(f"projection {description['projection_id']} is damaged: its hash differs; fit it again")
        arrays = load_tensors(tensors)
        return cls(arrays["components"], arrays["bias"], arrays["spectrum"], description["rows"])


def fit_projection(moments: Moments, dims: int) -> Projection:
    """Exact PCA from the moments, by eigendecomposition of the covariance in float64.

    Each axis points to where its largest entry is positive, so that equal data give an equal projection.

    Raises:
        LensError: fewer rows than it takes to span `dims` axes, or an impossible number of axes.
    """
    if dims < 1:
        raise LensError(f"cannot keep {dims} dimensions: keep at least one")
    if dims > moments.shift.size:
        raise LensError(f"cannot keep {dims} dimensions of embeddings that have {moments.shift.size}: lower the number")
    if moments.count <= dims:
        raise LensError(
            f"{moments.count} embeddings cannot fit a projection to {dims} dimensions: embed more windows first, "
            f"or keep fewer dimensions than embeddings"
        )
    spectrum, axes = np.linalg.eigh(moments.covariance)
    spectrum, axes = np.maximum(spectrum[::-1], 0.0), axes[:, ::-1]
    if spectrum[0] <= 0:
        raise LensError(f"all {moments.count} embeddings are equal: there is no direction to keep")
    kept = axes[:, :dims]
    kept = kept * np.sign(kept[np.abs(kept).argmax(axis=0), np.arange(dims)])
    return Projection(
        components=np.ascontiguousarray(kept, dtype=np.float32),
        bias=(-moments.mean @ kept).astype(np.float32),
        spectrum=spectrum,
        rows=moments.count,
    )
