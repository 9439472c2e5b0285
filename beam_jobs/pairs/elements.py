"""The elements that flow between the stages."""

from __future__ import annotations

from dataclasses import dataclass

from listing_lens.lake.records import Listing
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
class Shard:
    """A file of pairs: its split, its name, the number of pairs in it, and their contribution to the fingerprint."""

    kind: str
    name: str
    rows: int
    content: int
