"""The search service: search by photo and words, similar items."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from listing_lens.serving import problems
from listing_lens.serving.limits import Lag
from listing_lens.serving.metrics import Metrics
from listing_lens.serving.photos import MORE_THAN_PHOTO
from listing_lens.serving.problems import ProblemBody
from listing_lens.serving.routes import events, health, items, listings, page, search
from listing_lens.serving.service import Service

logger = logging.getLogger(__name__)

# A busy process is still alive, and says how it is.
_ALWAYS = ("/health/", "/metrics")


def create_app(service: Service) -> FastAPI:
    """The service as an ASGI application; it follows the alias while it runs."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="Listing Lens",
        version="1",
        description="Search a marketplace by photo and words, and find visually similar items.",
        lifespan=lifespan,
        # FastAPI's pages of the API have a browser run scripts from a server of somebody else's.
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    problems.install(app)
    for router in (search.router, items.router, listings.router, events.router, health.router, page.router):
        app.include_router(router)
    app.mount("/web", page.WebFiles())
    app.add_middleware(_Bounded, most_bytes=service.settings.image_max_bytes + MORE_THAN_PHOTO)
    app.add_middleware(Shedding, lag=service.lag, few=service.settings.search_in_flight)
    app.add_middleware(_Observed, metrics=service.metrics)
    return app


class _Bounded:
    """No request's body may be larger than a photo and what surrounds it."""

    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        self._app, self._most_bytes = app, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._most_bytes:
                raise HTTPException(413, f"more than {self._most_bytes:,} bytes")
            return message

        await self._app(scope, bounded, send)


class Shedding:
    """A process that is late refuses requests before it looks at them, which costs a tenth of answering one.

    A few are always answered: with those, it is not they that make it late, but what else the machine does.
    """

    def __init__(self, app: ASGIApp, lag: Lag, few: int) -> None:
        self._app, self._lag, self._few, self._inside = app, lag, few, 0
        busy = problems.answer(ProblemBody(title="Too many requests", status=429, detail="the service is busy"))
        busy.headers["Retry-After"] = "1"
        self._busy = busy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_crowded = self._inside >= self._few and self._lag.is_too_long
        if scope["type"] == "http" and is_crowded and not scope["path"].startswith(_ALWAYS):
            await self._busy(scope, receive, send)
            return
        self._inside += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._inside -= 1


class _Observed:
    """Logs and measures every request: by its operation, never by what was asked."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            seconds = time.perf_counter() - began
            route = scope.get("route")
            operation = f"{scope['method']} {route.path}" if route else "unknown"
            self._metrics.requests.labels(operation, str(status)).inc()
            self._metrics.request_seconds.labels(operation).observe(seconds)
            logger.info(
                "%s %s",
                operation,
                status,
                extra={"operation": operation, "status": status, "ms": round(1000 * seconds, 1)},
            )
