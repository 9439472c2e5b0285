"""Moments of embeddings: mergeable sufficient statistics of a PCA (Chan, Golub and LeVeque 1983).

A catalog of any size is read once, in any order, by any number of workers, each holding a block of rows and a matrix of
d × d. Matrix products are in single precision, about a shift near their rows' mean, where embeddings that lie far from the
origin and close together keep their digits; everything is added up in double precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import LensError

# Rows per matrix product: enough to make adding its result in double precision worthwhile.
_BLOCK_ROWS = 2048
# How far a single-precision product may be off, as a share of its largest entry on the diagonal, and along its longest
# direction. What rounding leaves there by chance stays below; what piles up to one side, overflows or vanishes does not.
_DIAGONAL_TOLERANCE = 1e-6
_DIRECTION_TOLERANCE = 4e-7


@dataclass(frozen=True)
class Moments:
    """Count, sum (d,) and Gram matrix (d, d) of rows about a shift (d,), all in float64. Merging is commutative."""

    count: int
    shift: NDArray[np.float64]
    sum: NDArray[np.float64]
    gram: NDArray[np.float64]

    @classmethod
    def of(cls, rows: NDArray[np.floating[Any]]) -> Moments:
        """The moments of rows (n, d), n at least 1, of float16, float32 or float64.

        The more rows at once, up to some ten thousand, the less a row costs. Beyond the rows themselves, it needs memory for
        a block of rows and three matrices of d × d.

        Raises:
            LensError: the rows hold a NaN or an infinity, are too large for double precision, or are not a matrix.
        """
        if rows.ndim != 2 or not rows.size:
            raise LensError(f"embeddings must be a matrix of at least one row, not of shape {rows.shape}")
        dims = rows.shape[1]
        blocks = [rows[start : start + _BLOCK_ROWS] for start in range(0, len(rows), _BLOCK_ROWS)]
        shifts, sums, gram = np.empty((len(blocks), dims)), np.empty((len(blocks), dims)), np.zeros((dims, dims))
        room = np.empty((len(blocks[0]), dims), np.float32)
        for at, block in enumerate(blocks):
            shifts[at], sums[at], product = _about_mean(block, room[: len(block)], first=at * _BLOCK_ROWS)
            gram += product
        return _about_one_shift(np.array([len(block) for block in blocks]), shifts, sums, gram)

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of rows together.

        Raises:
            LensError: they differ in dimensions.
        """
        if self.shift.shape != other.shift.shape:
            raise LensError(
                f"embeddings of {self.shift.size} and of {other.shift.size} dimensions in one fit: they are of two encoders"
            )
        shifts, sums = np.stack([self.shift, other.shift]), np.stack([self.sum, other.sum])
        return _about_one_shift(np.array([self.count, other.count]), shifts, sums, self.gram + other.gram)

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


def _about_mean(
    block: NDArray[np.floating[Any]], room: NDArray[np.float32], first: int
) -> tuple[NDArray[np.floating[Any]], NDArray[np.float64], NDArray[np.floating[Any]]]:
    """Shift (d,), sum (d,) and Gram matrix (d, d) of a block about its mean, as nearly as its precision has it.

    The Gram matrix is of float32 unless that cannot hold it, or the rows are of float64 themselves.

    Args:
        room: where the shifted rows may be written, of the block's shape.
        first: the number of the block's first row.
    """
    mean = _mean(block, first)
    if block.dtype == np.float64:
        return mean, *_in_double(block, mean, first)
    shift = mean.astype(np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        centred = np.subtract(block, shift, out=room)
        gram = centred.T @ centred
        squares = np.einsum("ij,ij->j", centred, centred, dtype=np.float64)
        holds = _holds(centred, gram, squares)
    if not holds:
        return shift, *_in_double(block, shift.astype(np.float64), first)
    # The diagonal is known more precisely.
    np.fill_diagonal(gram, squares)
    return shift, len(block) * (mean - shift), gram


def _holds(centred: NDArray[np.float32], gram: NDArray[np.float32], squares: NDArray[np.float64]) -> bool:
    """Whether a Gram matrix (d, d) has the digits that it should, by its columns' sums of squares (d,) in double precision.

    The diagonal does not show what columns of unlike size add to each other: the column of the largest entry is one step of
    the power method, so near to the longest direction, and how long the rows are along it is known without the matrix.
    """
    largest = squares.max()
    if not np.abs(np.diagonal(gram) - squares).max() <= _DIAGONAL_TOLERANCE * largest:
        return False
    if largest == 0:
        return True
    direction = (gram[:, squares.argmax()] / largest).astype(np.float32)
    length = np.square(centred @ direction, dtype=np.float64).sum()
    direction = direction.astype(np.float64)
    return bool(abs(direction @ (gram @ direction) - length) <= _DIRECTION_TOLERANCE * length)


def _in_double(
    block: NDArray[np.floating[Any]], shift: NDArray[np.float64], first: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum (d,) and Gram matrix (d, d) of a block about a shift."""
    with np.errstate(over="ignore", invalid="ignore"):
        centred = block - shift
        gram = centred.T @ centred
    if not np.isfinite(gram).all():
        raise _too_large(first)
    return centred.sum(axis=0), gram


def _mean(block: NDArray[np.floating[Any]], first: int) -> NDArray[np.float64]:
    with np.errstate(over="ignore", invalid="ignore"):
        mean: NDArray[np.float64] = block.mean(axis=0, dtype=np.float64)
    # The mean of finite numbers is finite, unless their sum overflows double precision.
    if not np.isfinite(mean).all():
        bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if bad.size:
            raise LensError(
                f"embedding {first + bad[0]} of the block holds a NaN or an infinity: embed its window again"
            )
        raise _too_large(first)
    return mean


def _too_large(first: int) -> LensError:
    return LensError(
        f"the squares of embedding {first} of the block, or of one after it, are beyond double precision: "
        "embed its window again with an encoder whose output is scaled"
    )


def _about_one_shift(
    counts: NDArray[np.int64], shifts: NDArray[np.float64], sums: NDArray[np.float64], gram: NDArray[np.float64]
) -> Moments:
    """Parts (n,) about shifts (n, d) of their own, with sums (n, d) → their moments together, about the first one's shift.

    `gram` is the sum of the parts' Gram matrices; it is changed in place.
    """
    moved = shifts - shifts[0]
    # s mᵀ + m sᵀ + n m mᵀ of each part, as h mᵀ + m hᵀ: one product and one pass over the matrix.
    half = sums + counts[:, None] / 2 * moved
    gram += np.vstack([half, moved]).T @ np.vstack([moved, half])
    return Moments(int(counts.sum()), shifts[0], sums.sum(axis=0) + counts @ moved, gram)
