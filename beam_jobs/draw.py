"""Drawing items by a hash of their ids, so that a draw repeats and a larger one contains the smaller."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.pair_rules import draw_number


def is_drawn(item_ids: pa.Array, share: float, salt: str) -> NDArray[np.bool_]:
    """Whether each item is among this share, (n,); all versions of an item are, or none.

    A microsecond an item, which is less than reading its embedding takes.
    """
    below = share * 2**64
    return np.fromiter((draw_number(salt, item_id) < below for item_id in item_ids.to_pylist()), bool, len(item_ids))
