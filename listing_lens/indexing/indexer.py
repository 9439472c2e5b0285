"""Brings listings into every index that is fed, each in its own space: embedded, projected, written with their versions.

Writes commute: an older version never wins, and what is written again changes nothing. So events may come in any order, and
any number of times.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from listing_lens.embedding.embedder import Embedder
from listing_lens.embedding.sources import encoder_runtime
from listing_lens.errors import LensError
from listing_lens.images.source import ImageSource
from listing_lens.indexing.events import newest
from listing_lens.lake.records import Listing
from listing_lens.lake.windows import Lake
from listing_lens.search.builds import Builds
from listing_lens.search.documents import Document, Refusal, document_of
from listing_lens.search.index import Index
from listing_lens.search.lifecycle import connect_builds
from listing_lens.settings import Settings
from models.embedder import EmbedderCard
from models.encoders.runtime import Runtime
from models.images import ImageError, decode_image

logger = logging.getLogger(__name__)

# Embedders that are held: of the live index, of one being built, and of the one before.
_EMBEDDERS = 3


@dataclass(frozen=True)
class Unusable:
    """A listing that cannot be searched for, and why."""

    listing: Listing
    reason: str


@dataclass
class Indexed:
    """What became of listings.

    Attributes:
        written: documents by index; what an index held already is not among them.
        unusable: listings that no index can hold.
        failed: the indexes that could not be written to, but for the live one, and why.
    """

    written: dict[str, int] = field(default_factory=dict)
    unusable: list[Unusable] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Indexer:
    """Writes listings to indexes.

    Attributes:
        builds: the indexes of an alias.
        images: reads the photos.
        embedder_of: loads the embedder of a space, or has it.
    """

    builds: Builds
    images: ImageSource
    embedder_of: Callable[[EmbedderCard], Embedder]

    @classmethod
    def of(cls, settings: Settings, *, patience_s: float = 0.0) -> Indexer:
        """The indexer that the settings describe, which embeds on the processor: where searches do, it has their encoder.

        Args:
            settings: name the cluster, the alias, the lake and where images may be read.
            patience_s: for how many seconds a request is repeated while the cluster does not answer.

        Raises:
            LensError: no cluster is named, or it does not respond.
        """
        builds = connect_builds(settings, patience_s=patience_s)
        runtime = replace(encoder_runtime(settings), device="cpu")
        return cls.with_embedders_of(Lake(settings.lake), builds, ImageSource.of(settings), runtime)

    @classmethod
    def with_embedders_of(cls, lake: Lake, builds: Builds, images: ImageSource, runtime: Runtime) -> Indexer:
        """The indexer whose embedders are a lake's, and are held once they are loaded."""
        return cls(builds, images, lru_cache(_EMBEDDERS)(lambda card: Embedder.load(card, lake, runtime)))

    def index(self, listings: Sequence[Listing]) -> Indexed:
        """Write the newest version of each listing to every index that is fed.

        Raises:
            LensError: the live index could not be written to, or its embedder not be loaded; the others were.
        """
        fed = self.builds.fed()
        live = set(self.builds.search_index.behind_alias())
        result = self.write(listings, fed)
        if lacking := [result.failed[name] for name in live & result.failed.keys()]:
            raise LensError(lacking[0])
        for name, because in result.failed.items():
            logger.warning("index %s does not get new listings just now: %s", name, because)
        return result

    def write(self, listings: Sequence[Listing], indexes: Sequence[Index]) -> Indexed:
        """Write the newest version of each listing to some indexes."""
        result, photos = Indexed(), _Photos(self.images)
        unusable: dict[str, Unusable] = {}
        wanted = newest(listings)
        by_id = {listing.item_id: listing for listing in wanted}
        for index in indexes:
            try:
                documents = self._documents(wanted, index, photos)
                written = self.builds.search_index.write_documents(index.name, documents)
            except LensError as err:
                result.failed[index.name] = str(err)
                continue
            result.written[index.name] = written.written
            for refusal in written.refused:
                unusable[refusal.item_id] = Unusable(by_id[refusal.item_id], refusal.reason)
        result.unusable = [unusable[item_id] for item_id in sorted(unusable)]
        return result

    def _documents(self, listings: Sequence[Listing], index: Index, photos: _Photos) -> list[Document | Refusal]:
        """The documents that an index lacks."""
        held = self.builds.search_index.versions(index.name, [listing.item_id for listing in listings])
        lacking = [one for one in listings if one.item_id not in held or held[one.item_id][0] < one.version]
        vectors = self._vectors([one for one in lacking if one.searchable], index.card, photos)
        return list(_documents_of(lacking, vectors, index.card.dims))

    def _vectors(
        self, listings: Collection[Listing], card: EmbedderCard, photos: _Photos
    ) -> dict[str, NDArray[np.float32] | str]:
        """The vector (dims,) of each listing, or why it has none."""
        if not listings:
            return {}
        embedder = self.embedder_of(card)
        found: dict[str, NDArray[np.float32] | str] = {}
        images: dict[str, Image.Image] = {}
        for listing in listings:
            try:
                images[listing.item_id] = photos.get(listing.image_uri, embedder.encoder.image_side)
            except ImageError as err:
                found[listing.item_id] = f"its photo cannot be used: {err}"
        if images:
            found.update(zip(images, embedder.embed(list(images.values())), strict=True))
        return found


class _Photos:
    """The photos of a batch, each fetched once."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self._fetched: dict[str, bytes | ImageError] = {}

    def get(self, uri: str, side: int) -> Image.Image:
        """A photo, of at least twice the side where it is that large. Raises ImageError."""
        if uri not in self._fetched:
            try:
                self._fetched[uri] = self._source.read(uri)
            except ImageError as err:
                self._fetched[uri] = err
        data = self._fetched[uri]
        if isinstance(data, ImageError):
            raise data
        return decode_image(data, self._source.limits, min_side=side)


def _documents_of(
    listings: Sequence[Listing], vectors: Mapping[str, NDArray[np.float32] | str], dims: int
) -> Iterator[Document | Refusal]:
    for listing in listings:
        vector = vectors.get(listing.item_id)
        if isinstance(vector, str):
            yield Refusal(listing.item_id, listing.version, vector)
        else:
            yield document_of(listing, vector, dims)
