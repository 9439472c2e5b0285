"""How the service is, for orchestrators, for Prometheus and for people."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response

from listing_lens.serving.service import Service, TheService
from listing_lens.serving.wire import Health

router = APIRouter(tags=["health"])


@router.get("/health/live", summary="Whether the process answers")
async def live() -> dict[str, bool]:
    """A process that does not answer this is to be restarted."""
    return {"alive": True}


@router.get(
    "/health/ready",
    summary="Whether requests can be answered",
    responses={503: {"model": Health, "description": "Not ready"}},
)
async def ready(service: TheService, response: Response) -> Health:
    """Ready with an index, its embedder and a cluster that answers. Problems are listed also when it is ready."""
    health = _health(service)
    response.status_code = 200 if health.state == "ready" else 503
    return health


@router.get("/metrics", summary="Metrics for Prometheus", include_in_schema=False)
async def metrics(service: TheService) -> Response:
    told, follower = service.metrics, service.follower
    told.waiting.labels("encoder").set(len(service.encoding))
    told.waiting.labels("texts").set(len(service.text_encoding))
    told.waiting.labels("index").set(service.reader.gate.waiting)
    told.waiting.labels("decoding").set(service.photos.gate.waiting)
    told.waiting.labels("listings").set(service.listings.waiting)
    told.lag.set(service.lag.now_s)
    told.breaker_open.set(service.reader.breaker.is_open)
    told.following.set(follower.problem is None)
    told.log_lost.set(service.search_log.lost)
    told.live.clear()
    if follower.live:
        told.live.labels(follower.live.index.name, follower.live.index.card.space).set(1)
    return Response(told.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _health(service: Service) -> Health:
    follower, is_open = service.follower, service.reader.breaker.is_open
    problems = [
        problem
        for problem in (
            follower.problem,
            "Elasticsearch does not answer" if is_open else None,
            service.listings.problem and f"new listings wait: {service.listings.problem}",
        )
        if problem
    ]
    state: Literal["ready", "nothing_to_search", "unavailable"] = "unavailable"
    if follower.live is not None and not is_open:
        state = "ready"
    elif follower.is_empty:
        state = "nothing_to_search"
    return Health(
        state=state,
        index=follower.live.index.name if follower.live else None,
        space=follower.live.index.card.space if follower.live else None,
        problems=problems,
    )
