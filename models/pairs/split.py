"""The split into training and validation pairs."""

from __future__ import annotations

from typing import Literal

from models.sampling import NUMBER_BITS, sample_number

Split = Literal["train", "validation"]


def split_of(salt: str, group: str, validation_share: float) -> Split:
    """The part that a whole group of listings belongs to."""
    # Not the sample's own salt: a small sample would otherwise fall entirely into one part.
    return "validation" if sample_number(f"{salt}\0split", group) < validation_share * 2**NUMBER_BITS else "train"
