"""How the demo's encoder is trained: its parent, and the params of `finetune_encoder`.

The recipe suits a small model, two cores and a few thousand pairs. The defaults suit a published model, on a GPU and a
million pairs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from listing_lens.lake.windows import LISTINGS, Lake

PAIRS: dict[str, Any] = {
    "pairs": 10_000,
    "sessions": 1_000,
    "validation_share": 0.15,
    "test_time": 0.17,
    "image_side": 128,
}

RECIPE: dict[str, Any] = {
    "epochs": 5,
    "batch_size": 128,
    "precision": "no",
    "learning_rate": 1e-3,
    # What the image tower has seen of ImageNet is more than the demo's photos can teach it: it is changed with care.
    "image_learning_rate": 3e-4,
    "freeze_image_layers": 5,
    "scalar_learning_rate": 1e-2,
    "warmup_share": 0.1,
    "betas": [0.9, 0.98],
    "smallest_crop": 0.4,
    "duplicates_as": "positive",
    # Of the parent and of the result: one more would take a tenth of the training.
    "validate_every": 100,
}


def save_parent(lake: Lake, folder: Path) -> Path:
    """Write the demo's parent, whose tokenizer knows the words of the landed listings.

    Raises:
        LensError: a package of the extra `demo` is not installed.
    """
    from models.encoders.small_siglip import save_imagenet_siglip

    batches = lake.read(LISTINGS, lake.windows(LISTINGS))
    return save_imagenet_siglip(folder, sorted({title for batch in batches for title in batch["title"].to_pylist()}))
