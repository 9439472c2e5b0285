"""Which pairs train and which validate."""

from __future__ import annotations

from typing import Literal

from models.sampling import NUMBER_BITS, sample_number

Split = Literal["train", "validation"]


def split_of(salt: str, group: str, validation_share: float) -> Split:
    """Which part a group of listings belongs to, as a whole."""
    # Another salt than the sample's: a small sample would otherwise be all of one part.
    return "validation" if sample_number(f"{salt}\0split", group) < validation_share * 2**NUMBER_BITS else "train"
