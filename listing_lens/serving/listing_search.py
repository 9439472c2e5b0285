"""Search by photos and words: a query is embedded in the space of the index that it searches, wherever the alias points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from listing_lens.embedding.sources import encoder_runtime
from listing_lens.errors import LensError
from listing_lens.images.source import ImageSource
from listing_lens.lake.windows import Lake
from listing_lens.search.index import Index, SearchIndex
from listing_lens.search.queries import Hit
from listing_lens.serving.listing_photos import ListingPhotos, recent_image_roots
from listing_lens.serving.pages import QueryPhoto, ShownHit, search_page
from listing_lens.serving.photos import MOST_PHOTOS
from listing_lens.serving.search_client import SearchClient, ServiceAwayError
from listing_lens.settings import Settings
from models.encoders.runtime import Runtime
from models.images import ImageError, ImageLimits, decode_image
from models.queries import QueryVectors


@dataclass(frozen=True)
class SearchResult:
    """A query and what was found for it, in which index.

    Attributes:
        photos: what was searched with, and the names of their files.
        text: the words that were searched with, or "".
        index, space: what was searched.
        hits: by decreasing similarity.
        photo_of: gets the photo of a hit; None if it cannot be shown.
    """

    photos: Sequence[QueryPhoto]
    text: str
    index: str
    space: str
    hits: list[Hit]
    photo_of: Callable[[Hit], Image.Image | None]


def search_listings(photos: Sequence[Path], text: str, k: int, settings: Settings) -> SearchResult:
    """Search the live index: by the search service if it answers, which has its encoder loaded, or else in this process.

    Args:
        photos: files with photos of one item; none if there is a text.
        text: what to look for, in words; "" if there are photos.

    Raises:
        LensError: there is nothing to search with, or too much, a photo cannot be read, no index is live, its embedder
            cannot be loaded, or it knows no words.
    """
    text = text.strip()
    if not photos and not text:
        raise LensError("there is nothing to search with: give a photo, --text, or both")
    if len(photos) > MOST_PHOTOS:
        raise LensError(f"{len(photos)} photos are too many to search with: give {MOST_PHOTOS} at most, of one item")
    limits = ImageLimits(settings.image_max_bytes, settings.image_max_pixels)
    encoded = [_read(photo, limits) for photo in photos]
    decoded = [QueryPhoto(path.name, _decode(data, path, limits)) for data, path in zip(encoded, photos, strict=True)]
    if settings.search_url:
        service = SearchClient(settings.search_url)
        with suppress(ServiceAwayError):
            found = service.search(encoded, text, k, settings.search_text_weight)
            photo_of = partial(service.photo, limits=limits)
            return SearchResult(decoded, text, found.index, found.space, found.hits, photo_of)
    return _search_here(decoded, text, k, settings)


def _search_here(photos: Sequence[QueryPhoto], text: str, k: int, settings: Settings) -> SearchResult:
    if text and not settings.search_text:
        raise LensError("searches by words are switched off: set LENS_SEARCH_TEXT=true")
    lake = Lake(settings.lake)
    lake.check()
    search_index = SearchIndex.connect(settings)
    # The alias is resolved once: a swap between here and the search cannot mix two spaces.
    index = search_index.require_live()
    query = _embed([photo.image for photo in photos], text, index, lake, encoder_runtime(settings))
    hits = search_index.search(index, query.together(settings.search_text_weight), k)
    listing_photos = ListingPhotos(ImageSource.of(settings), lambda: recent_image_roots(lake))

    def photo_of(hit: Hit) -> Image.Image | None:
        try:
            return listing_photos.read(hit.image_uri)
        except ImageError:
            # Gone since it was indexed: the page says so in its place.
            return None

    return SearchResult(photos, text, index.name, index.card.space, hits, photo_of)


def search_by_image(
    image: Image.Image, k: int, index: Index, *, search_index: SearchIndex, lake: Lake, runtime: Runtime
) -> list[Hit]:
    """The k listings of an index whose photos are most like an RGB image, by decreasing similarity.

    Raises:
        LensError: the index's embedder cannot be loaded.
    """
    return search_index.search(index, _embed([image], "", index, lake, runtime).photos[0], k)


def _embed(images: Sequence[Image.Image], text: str, index: Index, lake: Lake, runtime: Runtime) -> QueryVectors:
    # torch takes seconds to import: everything that can be refused without it has been by now.
    from listing_lens.embedding.embedder import Embedder, TextEmbedder

    # One query is quick on the CPU, and the GPUs are left to the jobs.
    runtime = replace(runtime, device="cpu")
    written = TextEmbedder.load(index.card, lake, runtime).embed([text])[0] if text else None
    if not images:
        return QueryVectors(np.empty((0, index.card.dims), np.float32), written)
    return QueryVectors(Embedder.load(index.card, lake, runtime).embed(images), written)


def as_page(result: SearchResult) -> str:
    """The result as an HTML page with the listings' photos."""
    return search_page(
        photos=result.photos,
        text=result.text,
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
