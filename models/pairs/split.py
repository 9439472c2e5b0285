"""The split into training, validation and test: whole groups of listings, by a hash."""

from __future__ import annotations

from typing import Literal

from models.pairs.titles import title_key
from models.sampling import NUMBER_BITS, sample_number

# What is learnt from, what chooses the checkpoint, and what is only reported.
Split = Literal["train", "validation", "test"]

# What a group is: a product's listings, or a seller's.
GroupedBy = Literal["product", "seller"]


def group_of(by: GroupedBy, *, item_id: str, title: str, seller_id: str | None, product_id: str | None) -> str:
    """The group of a listing, which is never in two parts.

    A listing without a product belongs together with those that its seller gave the same title; one without a seller is alone.
    """
    if by == "product" and product_id:
        return f"product {product_id}"
    if not seller_id:
        return f"item {item_id}"
    return f"seller {seller_id}" if by == "seller" else f"seller {seller_id} title {title_key(title)}"


def split_of(salt: str, group: str, validation_share: float, test_share: float) -> Split:
    """The part that a whole group of listings belongs to; a larger share contains a smaller one."""
    # Not the sample's own salt: a small sample would otherwise fall entirely into one part.
    number = sample_number(f"{salt}\0split", group)
    # From either end, so that changing one share moves nothing into or out of the other.
    if number < validation_share * 2**NUMBER_BITS:
        return "validation"
    return "test" if number >= (1 - test_share) * 2**NUMBER_BITS else "train"
