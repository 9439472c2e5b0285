"""Search by photo: the query is embedded in the space of the index that it searches, whichever the alias points to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from listing_lens.embedding.sources import encoder_runtime
from listing_lens.errors import LensError
from listing_lens.images.source import ImageSource
from listing_lens.lake.windows import LISTINGS, Lake
from listing_lens.search.index import Index, SearchIndex
from listing_lens.search.queries import Hit
from listing_lens.serving.pages import ShownHit, search_page
from listing_lens.settings import Settings
from models.encoders.runtime import Runtime
from models.images import ImageError, ImageLimits, decode_image

# A page may show photos below the image roots of this many of the newest windows.
_RECENT_WINDOWS = 100


@dataclass(frozen=True)
class SearchResult:
    """A query photo and what was found for it, in which index."""

    query: Image.Image
    query_name: str
    index: Index
    hits: list[Hit]


def search_by_photo(photo: Path, k: int, settings: Settings) -> SearchResult:
    """Search the live index.

    Raises:
        LensError: the photo cannot be read, no index is live, or its embedder cannot be loaded.
    """
    query = _read_photo(photo, ImageLimits(settings.image_max_bytes, settings.image_max_pixels))
    lake = Lake(settings.lake)
    lake.check()
    search_index = SearchIndex.connect(settings)
    # The alias is resolved once: a swap between here and the search cannot mix two spaces.
    index = search_index.require_live()
    hits = search_by_image(query, k, index, search_index=search_index, lake=lake, runtime=encoder_runtime(settings))
    return SearchResult(query, photo.name, index, hits)


def search_by_image(
    image: Image.Image, k: int, index: Index, *, search_index: SearchIndex, lake: Lake, runtime: Runtime
) -> list[Hit]:
    """The k listings of an index whose photos are most like an RGB image, by decreasing similarity.

    Raises:
        LensError: the index's embedder cannot be loaded.
    """
    # torch takes seconds to import: everything that can be refused without it has been by now.
    from listing_lens.embedding.embedder import Embedder

    # One photo is quick on the CPU, and the GPUs are left to the jobs.
    embedder = Embedder.load(index.card, lake, replace(runtime, device="cpu"))
    return search_index.search(index, embedder.embed([image])[0], k)


def as_page(result: SearchResult, settings: Settings) -> str:
    """The result as an HTML page with the listings' photos."""
    lake = Lake(settings.lake)
    recent = lake.windows(LISTINGS)[-_RECENT_WINDOWS:]
    images = ImageSource.of(settings).allowing(lake.image_roots(LISTINGS, recent))
    return search_page(
        query=result.query,
        query_name=result.query_name,
        hits=[ShownHit(hit, _listing_photo(hit, images)) for hit in result.hits],
        index=result.index.name,
        space=result.index.card.space,
    )


def _read_photo(photo: Path, limits: ImageLimits) -> Image.Image:
    try:
        with photo.open("rb") as file:
            return decode_image(file.read(limits.max_bytes + 1), limits)
    except OSError as err:
        raise LensError(f"photo {photo} cannot be read: {err.strerror}") from err
    except ImageError as err:
        raise LensError(f"photo {photo} cannot be searched with: {err}") from err


def _listing_photo(hit: Hit, images: ImageSource) -> Image.Image | None:
    try:
        return decode_image(images.read(hit.image_uri), images.limits, min_side=256)
    except ImageError:
        # Gone since it was indexed: the page says so in its place.
        return None
