"""Search by photo, by words, or by both."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, BackgroundTasks, Depends, Path, Query, Request, Response
from PIL import Image

from listing_lens.lake.records import MAX_CATEGORY_BYTES, Status
from listing_lens.search.queries import Filters
from listing_lens.serving.limits import Budget
from listing_lens.serving.live_space import LiveSpace
from listing_lens.serving.metrics import Stages
from listing_lens.serving.photos import PHOTOS_BODY, Crop
from listing_lens.serving.problems import Problem, responses
from listing_lens.serving.service import Service, TheService, counted
from listing_lens.serving.wire import SEARCH_ID, Found, SearchAnswer, notices_of
from models.queries import QueryVectors

Result = TypeVar("Result")

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


# More than any text tower reads.
_LONGEST_TEXT = 1000
Text = Annotated[str, Query(max_length=_LONGEST_TEXT, description="What to look for, in words.")]


async def _text(text: Text = "") -> str:
    return _stripped(text) if text else ""


async def _required_text(text: Text) -> str:
    return _stripped(text)


def _stripped(text: str) -> str:
    if not text.strip():
        raise Problem(422, "Not valid", "text: nothing is written", "text")
    return text.strip()


@dataclass(frozen=True)
class _Search:
    """What searches of every kind are asked for."""

    request: Request
    service: Service
    afterwards: BackgroundTasks
    filters: Filters
    k: int
    keep: bool

    async def answer(
        self,
        live: LiveSpace,
        query: QueryVectors,
        text: str,
        text_weight: float,
        *,
        images: Sequence[Image.Image],
        budget: Budget,
        stages: Stages,
    ) -> SearchAnswer:
        """Find what is nearest to a query, and keep the search if it may be."""
        service = self.service
        with stages.time("search"):
            vector = query.together(text_weight)
            hits = await service.reader.nearest(live.index, vector, self.k, budget, self.filters)
        service.metrics.results.labels("search").observe(len(hits))
        search_id = service.search_log.new_id(self.request, self.keep)
        if search_id:
            asked: dict[str, object] = {
                "surface": "photo" if images else "text",
                "k": self.k,
                "filters": asdict(self.filters),
            }
            if text:
                asked["text"] = text
            if text and images:
                asked["text_weight"] = text_weight
            self.afterwards.add_task(service.search_log.keep, search_id, live, hits, asked, images)
        return SearchAnswer(
            search_id=search_id,
            index=live.index.name,
            space=live.index.card.space,
            notices=notices_of(self.k, len(hits)),
            took_ms=stages.took_ms,
            results=[Found.of(hit, hit.score) for hit in hits],
        )


async def _search(
    request: Request,
    service: TheService,
    afterwards: BackgroundTasks,
    filters: Wanted,
    k: K = 20,
    keep: Keep = True,
) -> _Search:
    return _Search(request, service, afterwards, filters, k, keep)


Asked = Annotated[_Search, Depends(_search)]


@router.get("/search", summary="Find listings by words", responses=responses(401, 422, 429, 503))
async def search_by_text(asked: Asked, text: Annotated[str, Depends(_required_text)]) -> SearchAnswer:
    """The listings whose photos show what is written, as the encoder's text tower understands it; titles are not read."""
    service = asked.service
    stages, live, budget = service.metrics.stages(), service.follower.require(), service.budget()
    _require_texts(live)
    with stages.time("embed"):
        vector = await service.text_encoding.embed(text, live.texts, budget)
    query = QueryVectors(np.empty((0, len(vector)), np.float32), vector)
    return await asked.answer(live, query, text, 1.0, images=(), budget=budget, stages=stages)


@router.post(
    "/search",
    summary="Find listings by a photo",
    responses=responses(401, 408, 413, 422, 429, 503),
    openapi_extra=PHOTOS_BODY,
)
async def search_by_photo(
    asked: Asked,
    text: Annotated[str, Depends(_text)],
    text_weight: Annotated[
        float | None,
        Query(ge=0, le=1, allow_inf_nan=False, description="How much the text counts beside the photo."),
    ] = None,
    crop: Annotated[
        str | None,
        Query(max_length=100, description="Search with a part of the photo: left,top,right,bottom, as shares."),
    ] = None,
) -> SearchAnswer:
    """The body is the photo, or a form with a file `photo`: JPEG, PNG, WebP or HEIC, among others.

    A form may have several photos of one item; together they may be as large as one. With a `text`, listings are found that
    are like both: (1 − w) · photo + w · text, with w the `text_weight`.
    """
    service = asked.service
    part = Crop.parse(crop) if crop else None
    stages, live = service.metrics.stages(), service.follower.require()
    if text:
        _require_texts(live)
    with stages.time("upload"):
        photos = await service.photos.read(asked.request)
    if part and len(photos) > 1:
        raise Problem(422, "Not valid", "crop: of one photo only, and there are several", "crop")
    # A slow line is not the service's time.
    budget = service.budget()
    # A photo that would be refused afterwards is not decoded.
    service.encoding.require_time(live.embedder, budget)
    with stages.time("decode"):
        images = await _all(service.photos.decode(photo, live.embedder.image_side, part, budget) for photo in photos)
    with stages.time("embed"):
        vectors = [service.encoding.embed(image, live.embedder, budget) for image in images]
        written = [service.text_encoding.embed(text, live.texts, budget)] if text else []
        *pictured, last = await _all([*vectors, *written])
    query = QueryVectors(np.stack(pictured), last) if text else QueryVectors(np.stack([*pictured, last]))
    weight = service.settings.search_text_weight if text_weight is None else text_weight
    return await asked.answer(live, query, text, weight, images=images, budget=budget, stages=stages)


def _require_texts(live: LiveSpace) -> None:
    if live.texts.why_not:
        raise Problem(422, "Not valid", f"text: {live.texts.why_not}", "text")


async def _all(parts: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """What parts of a request come to, computed side by side; the first that fails ends the others."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


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
