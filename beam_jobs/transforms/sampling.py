"""Sampling rows by a hash of their items' ids: a sample made again is the same, and a larger one contains the smaller."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.sampling import sample_number


def is_sampled(item_ids: pa.Array, share: float, salt: str) -> NDArray[np.bool_]:
    """Whether each item is among this share, (n,); all versions of an item are, or none.

    A microsecond an item, which is less than reading its embedding takes.
    """
    below = share * 2**64
    return np.fromiter((sample_number(salt, item_id) < below for item_id in item_ids.to_pylist()), bool, len(item_ids))
