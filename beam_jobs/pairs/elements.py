"""The elements that flow between the stages."""

from __future__ import annotations

from dataclasses import dataclass

from listing_lens.lake.records import Listing, Session
from models.pairs.split import Split


@dataclass(frozen=True, slots=True)
class SampledListing:
    """A sampled listing. A smaller sample that contains it also contains every sampled listing of lower `rank`."""

    listing: Listing
    rank: tuple[int, int, str]


@dataclass(frozen=True, slots=True)
class StoredPhoto:
    """An image as stored, and its perceptual hash."""

    jpeg: bytes
    image_hash: int


@dataclass(frozen=True, slots=True)
class HashedPair:
    """A sampled pair without its image: what is needed to find twins."""

    item_id: str
    rank: tuple[int, int, str]
    split: Split
    group: str
    image_hash: int


@dataclass(frozen=True, slots=True)
class SampledSession:
    """A session, the part that its time and the tapped products put it in, and the groups of the tapped items."""

    session: Session
    split: Split
    groups: tuple[str, ...]

    @property
    def tapped(self) -> list[str]:
        """The ids of the tapped items."""
        return tapped_items(self.session)


def tapped_items(session: Session) -> list[str]:
    """The ids of the items that were tapped in a session."""
    return [item_id for item_id, tapped in zip(session.shown, session.tapped, strict=True) if tapped]


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of pairs: its split, its name, the number of pairs in it, and their contribution to the fingerprint."""

    kind: str
    name: str
    rows: int
    content: int
