"""What flows between the stages."""

from __future__ import annotations

from dataclasses import dataclass

from listing_lens.lake.records import Listing
from models.pairs.split import Split


@dataclass(frozen=True, slots=True)
class SampledListing:
    """A sampled listing. Of two, the one with the lower `rank` is also in every smaller sample that contains the other."""

    listing: Listing
    rank: tuple[int, int, str]


@dataclass(frozen=True, slots=True)
class StoredPhoto:
    """An image as it is stored, and its perceptual hash."""

    jpeg: bytes
    image_hash: int


@dataclass(frozen=True, slots=True)
class HashedPair:
    """A sampled pair without its image: what twins are found by."""

    item_id: str
    rank: tuple[int, int, str]
    split: Split
    group: str
    image_hash: int


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of pairs: its part of the split, its name, how many pairs it holds, and their part of the fingerprint."""

    kind: str
    name: str
    rows: int
    content: int
