"""Search by photo."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Depends, Path, Query, Request, Response

from listing_lens.lake.records import MAX_CATEGORY_BYTES, Status
from listing_lens.search.queries import Filters
from listing_lens.serving.photos import PHOTO_BODY, Crop
from listing_lens.serving.problems import Problem, responses
from listing_lens.serving.service import TheService, counted
from listing_lens.serving.wire import SEARCH_ID, Found, SearchAnswer, notices_of

Keep = Annotated[bool, Query(description="Whether the search may be kept, to evaluate the service by.")]

router = APIRouter(tags=["search"], dependencies=[counted("search")])

# More than any page shows.
MOST_RESULTS = 100
K = Annotated[int, Query(ge=1, le=MOST_RESULTS, description="How many listings to find.")]
_MOST_LEVELS = 20


# Not a plain function: those are run in threads.
async def _filters(
    category: Annotated[
        list[str] | None,
        Query(max_length=_MOST_LEVELS, description="Its levels from the coarsest on: listings at and below it."),
    ] = None,
    price_min: Annotated[int | None, Query(ge=0, le=2**53)] = None,
    price_max: Annotated[int | None, Query(ge=0, le=2**53)] = None,
    status: Annotated[Status | None, Query(description="on_sale or reserved; both if it is left out.")] = None,
) -> Filters:
    levels = category or []
    if any(not level or len(level.encode(errors="replace")) > MAX_CATEGORY_BYTES for level in levels):
        raise Problem(422, "Not valid", "category: a level is empty or too long", "category")
    if price_min is not None and price_max is not None and price_min > price_max:
        raise Problem(422, "Not valid", "price_max: less than price_min", "price_max")
    if status in (Status.SOLD, Status.DELETED):
        raise Problem(422, "Not valid", "status: sold and deleted listings cannot be searched", "status")
    return Filters(tuple(levels), price_min, price_max, status)


Wanted = Annotated[Filters, Depends(_filters)]


@router.post(
    "/search",
    summary="Find listings by a photo",
    responses=responses(401, 408, 413, 422, 429, 503),
    openapi_extra=PHOTO_BODY,
)
async def search(
    request: Request,
    service: TheService,
    afterwards: BackgroundTasks,
    filters: Wanted,
    k: K = 20,
    crop: Annotated[
        str | None,
        Query(max_length=100, description="Search with a part of the photo: left,top,right,bottom, as shares."),
    ] = None,
    keep: Keep = True,
) -> SearchAnswer:
    """The body is the photo, or a form with a file `photo`: JPEG, PNG, WebP or HEIC, among others."""
    part = Crop.parse(crop) if crop else None
    stages = service.metrics.stages()
    live = service.follower.require()
    with stages.time("upload"):
        data = await service.photos.read(request)
    # A slow line is not the service's time.
    budget = service.budget()
    # A photo that would be refused afterwards is not decoded.
    service.encoding.require_time(live.embedder, budget)
    with stages.time("decode"):
        image = await service.photos.decode(data, live.embedder.image_side, part, budget)
    with stages.time("embed"):
        vector = await service.encoding.embed(image, live.embedder, budget)
    with stages.time("search"):
        hits = await service.reader.nearest(live.index, vector, k, budget, filters)
    service.metrics.results.labels("search").observe(len(hits))
    search_id = service.search_log.new_id(request, keep)
    if search_id:
        asked = {"surface": "photo", "k": k, "filters": asdict(filters)}
        afterwards.add_task(service.search_log.keep, search_id, live, hits, asked, image)
    return SearchAnswer(
        search_id=search_id,
        index=live.index.name,
        space=live.index.card.space,
        notices=notices_of(k, len(hits)),
        took_ms=stages.took_ms,
        results=[Found.of(hit, hit.score) for hit in hits],
    )


@router.get(
    "/searches/{search_id}/photo",
    summary="The photo of a search",
    responses={**responses(401, 404, 422, 429), 200: {"content": {"image/jpeg": {}}}},
    response_class=Response,
)
async def search_photo(search_id: Annotated[str, Path(pattern=SEARCH_ID)], service: TheService) -> Response:
    """For whoever was given a link to a search, as long as it is kept."""
    data = await service.search_log.photo(search_id)
    if data is None:
        raise Problem(404, "Not found", "search_id: the photo of this search is not kept", "search_id")
    return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})
