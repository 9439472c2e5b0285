"""Search by photo: the query is embedded in the space of the index that it searches, whichever the alias points to."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from PIL import Image

from listing_lens.embedding.sources import encoder_runtime
from listing_lens.errors import LensError
from listing_lens.images.source import ImageSource
from listing_lens.lake.windows import Lake
from listing_lens.search.index import Index, SearchIndex
from listing_lens.search.queries import Hit
from listing_lens.serving.listing_photos import ListingPhotos, recent_image_roots
from listing_lens.serving.pages import ShownHit, search_page
from listing_lens.serving.search_client import SearchClient, ServiceAwayError
from listing_lens.settings import Settings
from models.encoders.runtime import Runtime
from models.images import ImageError, ImageLimits, decode_image


@dataclass(frozen=True)
class SearchResult:
    """A query photo and what was found for it, in which index.

    Attributes:
        query, query_name: the photo that was searched with, and its file's name.
        index, space: what was searched.
        hits: by decreasing similarity.
        photo_of: gets the photo of a hit; None if it cannot be shown.
    """

    query: Image.Image
    query_name: str
    index: str
    space: str
    hits: list[Hit]
    photo_of: Callable[[Hit], Image.Image | None]


def search_by_photo(photo: Path, k: int, settings: Settings) -> SearchResult:
    """Search the live index: by the search service if it answers, which has its encoder loaded, or else in this process.

    Raises:
        LensError: the photo cannot be read, no index is live, or its embedder cannot be loaded.
    """
    limits = ImageLimits(settings.image_max_bytes, settings.image_max_pixels)
    data = _read(photo, limits)
    query = _decode(data, photo, limits)
    if settings.search_url:
        service = SearchClient(settings.search_url)
        with suppress(ServiceAwayError):
            found = service.search(data, k)
            photo_of = partial(service.photo, limits=limits)
            return SearchResult(query, photo.name, found.index, found.space, found.hits, photo_of)
    return _search_here(query, photo.name, k, settings)


def _search_here(query: Image.Image, name: str, k: int, settings: Settings) -> SearchResult:
    lake = Lake(settings.lake)
    lake.check()
    search_index = SearchIndex.connect(settings)
    # The alias is resolved once: a swap between here and the search cannot mix two spaces.
    index = search_index.require_live()
    hits = search_by_image(query, k, index, search_index=search_index, lake=lake, runtime=encoder_runtime(settings))
    photos = ListingPhotos(ImageSource.of(settings), lambda: recent_image_roots(lake))

    def photo_of(hit: Hit) -> Image.Image | None:
        try:
            return photos.read(hit.image_uri)
        except ImageError:
            # Gone since it was indexed: the page says so in its place.
            return None

    return SearchResult(query, name, index.name, index.card.space, hits, photo_of)


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


def as_page(result: SearchResult) -> str:
    """The result as an HTML page with the listings' photos."""
    return search_page(
        query=result.query,
        query_name=result.query_name,
        hits=[ShownHit(hit, result.photo_of(hit)) for hit in result.hits],
        index=result.index,
        space=result.space,
    )


def _read(photo: Path, limits: ImageLimits) -> bytes:
    try:
        with photo.open("rb") as file:
            return file.read(limits.max_bytes + 1)
    except OSError as err:
        raise LensError(f"photo {photo} cannot be read: {err.strerror}") from err


def _decode(data: bytes, photo: Path, limits: ImageLimits) -> Image.Image:
    try:
        return decode_image(data, limits)
    except ImageError as err:
        raise LensError(f"photo {photo} cannot be searched with: {err}") from err
