"""The code that loads a model: transformers' own, this package's or, if trusted, what the model ships."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import CONFIG_MAPPING

from models.encoders.files import borrows_code, is_pinned, model_type, ships_code
from models.errors import LensError


def register_architecture(folder: Path) -> None:
    """Register a model's architecture with transformers if it is one of this package's; imported only then."""
    if model_type(folder) == "conv_siglip":
        import models.encoders.conv_siglip  # noqa: F401  registers itself


def may_run_own_code(source: str, folder: Path, trusted: Sequence[str]) -> bool:
    """Whether a model is loaded by code that it ships. Raises LensError if it needs that code and may not run it."""
    if not ships_code(folder) or json.loads((folder / "config.json").read_bytes()).get("model_type") in CONFIG_MAPPING:
        return False
    if not is_pinned(source):
        raise LensError(
            f"encoder {source!r} ships code of its own, which could be anything tomorrow: name it by its hub id and pin "
            "the commit that you have read, as in id@0123…, all 40 digits"
        )
    if borrows_code(folder):
        raise LensError(
            f"encoder {source!r} is loaded by code of another model, which its commit does not pin: save a copy with the code "
            "in its own files"
        )
    if source not in trusted:
        raise LensError(
            f"encoder {source!r} ships code of its own: if you trust it, add it to LENS_ENCODER_TRUSTED_CODE"
        )
    return True
