"""Items: what is similar to one, and its photo."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Path, Query, Request, Response

from listing_lens.lake.records import MAX_ID_BYTES
from listing_lens.serving.index_reader import IndexReader, Stored
from listing_lens.serving.limits import Budget
from listing_lens.serving.live_space import LiveSpace
from listing_lens.serving.problems import Problem, responses
from listing_lens.serving.routes.search import K, Keep, Wanted
from listing_lens.serving.service import TheService, counted
from listing_lens.serving.similar import Ranked, Ranking, candidates_of, candidates_wanted, rank
from listing_lens.serving.wire import Explanation, Found, FoundSimilar, NewestAnswer, SimilarAnswer, notices_of
from models.images import ImageError

router = APIRouter(prefix="/items", tags=["items"])

ItemId = Annotated[str, Path(min_length=1, max_length=MAX_ID_BYTES, description="The item's id.")]
# Photos change only with their address, and with that the item's version.
_CACHED = {"Cache-Control": "public, max-age=3600"}


@router.get("", summary="Newest listings", responses=responses(401, 422, 429, 503), dependencies=[counted("similar")])
async def newest(service: TheService, filters: Wanted, k: K = 20) -> NewestAnswer:
    """The listings that were updated last, of those that pass the filters."""
    budget, live = service.budget(), service.follower.require()
    hits = await service.reader.newest(live.index, k, budget, filters)
    return NewestAnswer(index=live.index.name, results=[Found.of(hit, hit.score) for hit in hits])


@router.get(
    "/{item_id:path}/similar",
    summary="Find visually similar items",
    responses=responses(401, 404, 422, 429, 503),
    dependencies=[counted("similar")],
)
async def similar(
    item_id: ItemId,
    request: Request,
    service: TheService,
    afterwards: BackgroundTasks,
    k: K = 20,
    explain: Annotated[bool, Query(description="Say of each item why it is where it is.")] = False,
    by_price: Annotated[bool, Query(description="Leave out items at quite another price.")] = True,
    by_category: Annotated[bool, Query(description="Rank items of a similar category first.")] = True,
    keep: Keep = True,
) -> SimilarAnswer:
    """Neighbours by the photos' vectors, at a similar price, ranked by similarity and category. No encoder takes part."""
    stages, budget, live = service.metrics.stages(), service.budget(), service.follower.require()
    ranking = Ranking(
        service.ranking.price_factor if by_price else 0.0,
        service.ranking.category_weight if by_category else 0.0,
        service.ranking.pool,
    )
    async with service.reader.several(budget) as reader:
        with stages.time("lookup"):
            stored = await _stored(item_id, reader, live, budget)
        if stored.vector is None:
            raise Problem(
                404, "Not found", f"item_id: item {item_id!r} is {stored.item.status}, and not searched for", "item_id"
            )
        item = stored.item
        with stages.time("search"):
            hits = await reader.nearest(
                live.index, stored.vector, candidates_wanted(k, ranking), budget, candidates_of(item, ranking)
            )
    with stages.time("rank"):
        ranked = rank(item, hits, k, ranking)
    service.metrics.results.labels("similar").observe(len(ranked))
    search_id = service.search_log.new_id(request, keep)
    if search_id:
        shown = [one.hit for one in ranked]
        asked = {"surface": "similar", "k": k, "item_id": item_id}
        afterwards.add_task(service.search_log.keep, search_id, live, shown, asked)
    return SimilarAnswer(
        search_id=search_id,
        index=live.index.name,
        space=live.index.card.space,
        notices=notices_of(k, len(ranked)),
        took_ms=stages.took_ms,
        item=Found.of(item, 1.0),
        results=[FoundSimilar.of_ranked(one, _why(one, item.price, ranking) if explain else None) for one in ranked],
    )


@router.get(
    "/{item_id:path}/photo",
    summary="An item's photo, small",
    responses={**responses(401, 404, 422, 429, 503), 200: {"content": {"image/jpeg": {}}}},
    response_class=Response,
    dependencies=[counted("photos")],
)
async def photo(item_id: ItemId, service: TheService) -> Response:
    """A JPEG without metadata."""
    budget, live = service.budget(), service.follower.require()
    item = (await _stored(item_id, service.reader, live, budget)).item
    async with service.thumbnails.enter(budget):
        try:
            data = await asyncio.to_thread(service.listing_photos.thumbnail, item.image_uri)
        except ImageError as err:
            raise Problem(404, "Not found", f"item_id: its photo cannot be shown: {err}", "item_id") from None
    return Response(data, media_type="image/jpeg", headers=_CACHED)


async def _stored(item_id: str, reader: IndexReader, live: LiveSpace, budget: Budget) -> Stored:
    if len(item_id.encode(errors="replace")) > MAX_ID_BYTES:
        raise Problem(422, "Not valid", f"item_id: longer than {MAX_ID_BYTES} bytes", "item_id")
    stored = await reader.stored(live.index, item_id, budget)
    if stored is None:
        raise Problem(404, "Not found", f"item_id: there is no item {item_id!r}", "item_id")
    return stored


def _why(ranked: Ranked, price: int, ranking: Ranking) -> Explanation:
    weight, hit, shared = ranking.category_weight, ranked.hit, ranked.category_similarity
    formula = f"{ranked.score:.4f} = visual similarity {hit.score:.4f}"
    if shared is not None:
        formula = f"{ranked.score:.4f} = {1 - weight:g} × visual similarity {hit.score:.4f} + {weight:g} × category {shared:.4f}"
    return Explanation(
        visual_rank=ranked.visual_rank,
        visual_similarity=hit.score,
        category_similarity=shared,
        price_ratio=hit.price / price if price > 0 else None,
        formula=formula,
    )
