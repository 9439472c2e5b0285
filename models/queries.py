"""A query of several parts: photos of one item, words, or both, as one vector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.projection import Projection

# Below this length, a sum of unit vectors has no direction to speak of.
_NO_LENGTH = 1e-6


@dataclass(frozen=True)
class QueryVectors:
    """The parts of a query in one vector space, all of unit length.

    Attributes:
        photos: (n, d) float32, n at least 0: photos of one item.
        text: (d,) float32; None if nothing was written.
    """

    photos: NDArray[np.float32]
    text: NDArray[np.float32] | None = None

    def projected(self, projection: Projection) -> QueryVectors:
        """The same parts in the space of a projection."""
        text = None if self.text is None else projection.apply(self.text[None])[0]
        return QueryVectors(projection.apply(self.photos), text)

    def together(self, text_weight: float) -> NDArray[np.float32]:
        """The query's vector (d,), of unit length: (1 − w) · the photos' mean direction + w · the text.

        A similarity to it is so the weighted sum of the similarities to its parts, up to a factor that is the same for all
        items. Where parts cancel each other, the photos decide.

        Args:
            text_weight: w, from 0 to 1; of no account unless there are photos and a text.
        """
        if self.text is None:
            return _direction(self.photos.mean(axis=0), self.photos[0])
        if not len(self.photos):
            return self.text
        photo = _direction(self.photos.mean(axis=0), self.photos[0])
        return _direction((1 - text_weight) * photo + text_weight * self.text, photo)


def _direction(vector: NDArray[np.float32], otherwise: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.linalg.norm(vector)
    return otherwise if length < _NO_LENGTH else (vector / length).astype(np.float32)
