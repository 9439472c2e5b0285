"""The rules that determine a sample of pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

from listing_lens.errors import LensError
from listing_lens.lake.records import Listing, Session
from listing_lens.lake.window import Window
from models.pairs.split import GroupedBy, Split, group_of, split_of

# The strata of a balanced sample are categories, down to this many levels.
_STRATUM_LEVELS = 2


@dataclass(frozen=True)
class Rules:
    """Everything that determines the sample of a given window; recorded in the manifest."""

    pairs: int
    sessions: int
    validation_share: float
    test_share: float
    test_time: float
    split_by: GroupedBy
    balance: bool
    max_per_image: int
    image_side: int
    salt: str

    def __post_init__(self) -> None:
        for name, least in (("pairs", 1), ("sessions", 0), ("max_per_image", 1), ("image_side", 8)):
            if getattr(self, name) < least:
                raise LensError(f"--{name} is {getattr(self, name)}: give {least} or more")
        for name in ("validation_share", "test_share", "test_time"):
            if not 0 < getattr(self, name) < 1:
                raise LensError(f"--{name} is {getattr(self, name)}: give a share between 0 and 1")
        if self.validation_share + self.test_share >= 1:
            raise LensError(
                f"--validation_share and --test_share are {self.validation_share} and {self.test_share}: "
                "together they must leave some products to train on"
            )

    def stratum(self, listing: Listing) -> str:
        """The stratum that a listing is sampled from."""
        return " > ".join(listing.category[:_STRATUM_LEVELS]) if self.balance else "all"

    def group(self, listing: Listing) -> str:
        """The group that is never in two parts."""
        return group_of(
            self.split_by,
            item_id=listing.item_id,
            title=listing.title,
            seller_id=listing.seller_id,
            product_id=listing.product_id,
        )

    def split(self, listing: Listing) -> Split:
        """The part of the split that a listing belongs to."""
        return self.split_of_group(self.group(listing))

    def split_of_group(self, group: str) -> Split:
        """The part of the split that a group belongs to."""
        return split_of(self.salt, group, self.validation_share, self.test_share)

    def test_start(self, window: Window) -> datetime:
        """When the test period of a window begins: training knows nothing from then on."""
        return window.end - self.test_time * (window.end - window.start)

    def period(self, session: Session, window: Window) -> Split:
        """The part of the split that a session can be in, by its time."""
        return "test" if session.searched_at >= self.test_start(window) else "validation"

    def sessions_to_draw(self, period: Split) -> int:
        """How many sessions of a period to look at, so that about `sessions` tap products of its part alone, or fewer."""
        share = self.test_share if period == "test" else self.validation_share
        return math.ceil(self.sessions / share)
