"""What one verification depends on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from beam_jobs.transforms.cluster import Cluster
from listing_lens.images.source import ImageSource
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.fits import load_projection
from listing_lens.lake.pins import Pin
from listing_lens.search.index import Index
from listing_lens.search.verification import Check
from listing_lens.settings import Settings, load_settings
from models.encoders.runtime import Runtime
from models.projection import Projection

# What a buyer sees of a search's results: the checks that search look at so many.
SHOWN = 10
# A check's examples, and the most items that are repaired one by one.
EXAMPLES = 5
MOST_REPAIRED = 10_000
# How close a vector of the index must be to the lake's. Both are stored in single precision, but need not be computed on the
# same machine; and where the space is computed in int8, a listing that was told of as it changed was embedded in float32.
EXACT = 0.9999
_REDUCED = 0.9


@dataclass(frozen=True)
class Limits:
    """The sizes of the samples, and the least that passes; see listing_lens/defaults.toml."""

    queries: int
    sample: int
    canaries: int
    least_recall: float
    least_found: float

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        return cls(
            settings.verify_queries,
            settings.verify_sample,
            settings.verify_canaries,
            settings.verify_least_recall,
            settings.verify_least_found,
        )

    @property
    def drawn(self) -> int:
        """The size of the sample that all others are the beginning of."""
        return max(self.queries, self.sample, self.canaries)


@dataclass(frozen=True)
class Config:
    """One verification: which index, against which version of its encoder's table.

    Attributes:
        known: checks that need no look at the items, already made.
        embedded_until: the end of the newest embedded window: later documents are ahead of the lake.
        refused: (item id, version) of what Elasticsearch refused.
        images, runtime: what reads and embeds the canaries' photos.
        least_cosine: between a vector of the index and the lake's of the same version.
        forced: names of checks that are accepted whatever their outcome.
        every_vector: compare every item's vector with the lake's, rather than a sample's.
        then_repair: leave the differing items in the lake instead of failing.
        repaired: what was repaired before; None if nothing was asked to be.
    """

    embeddings: Embeddings
    index: Index
    version: int
    cluster: Cluster
    limits: Limits
    known: tuple[Check, ...]
    embedded_until: datetime
    began_at: datetime
    images: ImageSource
    runtime: Runtime
    least_cosine: float = EXACT
    refused: frozenset[tuple[str, int]] = frozenset()
    forced: tuple[str, ...] = ()
    every_vector: bool = False
    then_repair: bool = False
    repaired: str | None = None

    def projection(self) -> Projection:
        """The projection of the index's space."""
        card = self.index.card
        return load_projection(self.embeddings.lake, card.projection_id, card.encoder_id)

    def settings(self) -> Settings:
        """The settings on a worker, with the lake and the cluster of this verification."""
        return load_settings(
            lake=self.embeddings.lake.root, elasticsearch_url=self.cluster.url, alias=self.cluster.alias
        )


def least_cosine(pin: Pin | None) -> float:
    """How close the index's vectors must be to the lake's, which are computed in the backend of a pin."""
    return EXACT if pin is None or pin.backend.exact else _REDUCED
