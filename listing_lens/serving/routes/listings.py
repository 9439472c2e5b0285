"""Listings as sellers change them: what is told here can be found a moment later."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from pydantic import AwareDatetime

from listing_lens.indexing.events import TOLERANCE, EventError, Told, listing_of, removal_of
from listing_lens.lake.records import MAX_ID_BYTES, Listing
from listing_lens.serving.callers import Caller
from listing_lens.serving.photos import PHOTO_BODY
from listing_lens.serving.problems import Problem, responses
from listing_lens.serving.service import Service, TheService, counted
from listing_lens.serving.wire import StoredPhoto, Taken
from models.images import ImageError, decode_image

router = APIRouter(tags=["listings"])

ItemId = Annotated[str, Path(min_length=1, max_length=MAX_ID_BYTES, description="The item's id.")]
ACaller = Annotated[Caller, counted("listings")]
# 404 for an id that no path can hold, such as one with a line feed.
_REFUSALS = (400, 401, 403, 404, 413, 422, 429, 503)


@router.post(
    "/photos",
    status_code=201,
    summary="Keep the photo of a listing",
    responses=responses(401, 403, 408, 413, 422, 429, 503),
    openapi_extra=PHOTO_BODY,
)
async def keep_photo(request: Request, service: TheService, caller: ACaller) -> StoredPhoto:
    """The body is the photo, or a form with a file `photo`. The answer's address is the `image_uri` of its listing."""
    caller.require_known("listings")
    [data] = await service.photos.read(request, most=1)
    await service.photos.decode(data, 0, None, service.budget())
    return StoredPhoto(image_uri=await asyncio.to_thread(service.image_store.put, data))


@router.put(
    "/listings/{item_id:path}",
    status_code=202,
    summary="Tell of a new or changed listing",
    responses=responses(*_REFUSALS),
)
async def put(item_id: ItemId, told: Told, service: TheService, caller: ACaller) -> Taken:
    """The listing's whole state. It is kept when this answers, and can be found about a second later.

    Of two tellings of a listing, the one that was updated later counts, in whichever order they come.
    """
    caller.require_known("listings")
    now = datetime.now(UTC)
    with _refusing():
        listing = listing_of(item_id, told, now, oldest=_oldest(service, now))
    if listing.searchable:
        await _require_photo(listing, service)
    return await _take(listing, service)


@router.delete(
    "/listings/{item_id:path}",
    status_code=202,
    summary="Tell that a listing was deleted",
    responses=responses(*_REFUSALS),
)
async def delete(
    item_id: ItemId,
    service: TheService,
    caller: ACaller,
    updated_at: Annotated[AwareDatetime | None, Query(description="When; now if left out.")] = None,
) -> Taken:
    """It is not found any more about a second later. A listing that is not known may still come, and stays deleted."""
    caller.require_known("listings")
    now = datetime.now(UTC)
    with _refusing():
        listing = removal_of(item_id, updated_at, now, oldest=_oldest(service, now))
    return await _take(listing, service)


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except EventError as err:
        raise Problem(422, "Not valid", f"{err.field}: {err.reason}", err.field) from None


def _oldest(service: Service, now: datetime) -> datetime | None:
    """Where the service feeds the lake, a window is landed soon after its end: what is older would come too late for it."""
    return now - TOLERANCE if service.settings.listings_feed == "service" else None


async def _require_photo(listing: Listing, service: Service) -> None:
    """Refuse a photo that will never be usable; one that cannot be had just now may be later."""
    images = service.images
    async with service.photos.gate.enter(service.budget()):
        try:
            data = await asyncio.to_thread(images.read, listing.image_uri)
            await asyncio.to_thread(decode_image, data, images.limits, min_side=1)
        except ImageError as err:
            if not err.transient:
                raise Problem(422, "Not valid", f"image_uri: {err}", "image_uri") from None


async def _take(listing: Listing, service: Service) -> Taken:
    await service.listings.tell(listing)
    return Taken(item_id=listing.item_id, version=str(listing.version), updated_at=listing.updated_at)
