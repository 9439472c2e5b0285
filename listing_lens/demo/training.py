"""How the demo's encoder is trained: its parent, and the pairs that `finetune_encoder` samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from listing_lens.lake.windows import LISTINGS, Lake

PAIRS: dict[str, Any] = {
    "pairs": 10_000,
    "sessions": 1_000,
    "validation_share": 0.15,
    "test_time": 0.17,
    "image_side": 144,
}


def save_parent(lake: Lake, folder: Path) -> Path:
    """Write the demo's parent, whose tokenizer knows the words of the landed listings.

    Raises:
        LensError: a package of the extra `demo` is not installed.
    """
    from models.encoders.small_siglip import save_imagenet_siglip

    batches = lake.read(LISTINGS, lake.windows(LISTINGS))
    return save_imagenet_siglip(folder, sorted({title for batch in batches for title in batch["title"].to_pylist()}))
