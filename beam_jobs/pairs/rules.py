"""The rules that determine a sample of pairs."""

from __future__ import annotations

from dataclasses import dataclass

from listing_lens.errors import LensError
from listing_lens.lake.records import Listing
from models.pairs.split import Split, split_of

# The strata of a balanced sample are categories, down to this many levels.
_STRATUM_LEVELS = 2


@dataclass(frozen=True)
class Rules:
    """Everything that determines the sample of a given window; recorded in the manifest."""

    pairs: int
    sessions: int
    validation_share: float
    split_by: str
    balance: bool
    max_per_image: int
    image_side: int
    salt: str

    def __post_init__(self) -> None:
        for name, least in (("pairs", 1), ("sessions", 0), ("max_per_image", 1), ("image_side", 8)):
            if getattr(self, name) < least:
                raise LensError(f"--{name} is {getattr(self, name)}: give {least} or more")
        if not 0 < self.validation_share < 1:
            raise LensError(f"--validation_share is {self.validation_share}: give a share between 0 and 1")

    def stratum(self, listing: Listing) -> str:
        """The stratum that a listing is sampled from."""
        return " > ".join(listing.category[:_STRATUM_LEVELS]) if self.balance else "all"

    def group(self, listing: Listing) -> str:
        """The group that is never on both sides of the split; a listing without a code is its own group."""
        code = listing.product_id if self.split_by == "product" else listing.seller_id
        return f"{self.split_by} {code}" if code else f"item {listing.item_id}"

    def split(self, listing: Listing) -> Split:
        """The part of the split that a listing belongs to."""
        return split_of(self.salt, self.group(listing), self.validation_share)
