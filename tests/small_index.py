"""Two small indexes on a real node, of the same listings in two spaces: written by hand, without any job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from uuid import uuid4

from tiny import FIRST, image_root, land, listing, photo, take_photo

from listing_lens.lake.fits import save_projection
from listing_lens.lake.windows import Lake
from listing_lens.search.index import Index, SearchIndex
from listing_lens.settings import Settings, load_settings
from models.embedder import EmbedderCard
from models.encoders.encoder import shared_encoder
from models.images import ImageLimits, decode_image
from models.moments import Moments
from models.projection import fit_projection

IDS = [f"m{n:03d}" for n in range(20)]
_LIMITS = ImageLimits(10**7, 10**7)


@dataclass(frozen=True)
class Small:
    """Twenty photos in a lake, and two indexes of them in two spaces of the same dimension; the first is live."""

    settings: Settings
    search_index: SearchIndex
    live: Index
    other: Index

    def photo(self, item_id: str) -> Path:
        return Path(image_root(Lake(self.settings.lake)), f"{item_id}.jpg")


@contextmanager
def small_index(
    folder: Path,
    elasticsearch_url: str,
    encoder_folder: Path,
    changes: Mapping[str, Mapping[str, object]] = MappingProxyType({}),
) -> Iterator[Small]:
    """Make them, in a home and a lake below a folder, and delete them at the end.

    Args:
        changes: fields of listings, by item, that are not as `tiny.listing` makes them.
    """
    settings = load_settings(
        home=folder / "home",
        lake=str(folder / "lake"),
        elasticsearch_url=elasticsearch_url,
        alias=f"test-{uuid4().hex[:8]}",
        encoder_backends=("float32",),
    )
    lake = Lake(settings.lake)
    for seed, item_id in enumerate(IDS):
        take_photo(lake, f"{item_id}.jpg", seed)
    listings = [
        listing(item_id, image_uri=f"{image_root(lake)}/{item_id}.jpg", **changes.get(item_id, {})) for item_id in IDS
    ]
    land(lake, FIRST, listings)
    encoder = shared_encoder(str(encoder_folder))
    rows = encoder.embed([decode_image(photo(seed), _LIMITS) for seed in range(len(IDS))])
    search_index = SearchIndex.connect(settings)
    indexes = []
    # Fitted on other photos, the second is another space.
    for build, fitted_on in (("one", rows), ("two", rows[5:])):
        projection = fit_projection(Moments.of(fitted_on), 4)
        save_projection(lake, projection)
        card = EmbedderCard(
            encoder_source=str(encoder_folder),
            encoder_id=encoder.encoder_id,
            encoder_dims=encoder.dims,
            projection_id=projection.projection_id,
            dims=4,
        )
        index = search_index.create(card, build)
        search_index.write(index.name, listings, list(projection.apply(rows)))
        search_index.finish_load(index.name)
        indexes.append(index)
    search_index.swap(indexes[0].name)
    yield Small(settings, search_index, *indexes)
    for index in indexes:
        search_index.client.indices.delete(index=index.name)
