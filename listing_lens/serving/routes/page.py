"""The web page for buyers: plain files, without a build step."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

FILES = Path(__file__).parent.parent / "web"

router = APIRouter(include_in_schema=False)

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    # Nothing can be made markup or script, whatever a seller's text holds.
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
# The page's box on a photo is placed by script, through the style's own interface, which the policy lets pass.
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@router.get("/")
async def page(_request: Request) -> Response:
    return FileResponse(FILES / "index.html", headers=_HEADERS)


class WebFiles:
    """The page's files, which a browser asks for anew after an update."""

    def __init__(self) -> None:
        self._files: ASGIApp = StaticFiles(directory=FILES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    *((name.lower().encode(), value.encode()) for name, value in _HEADERS.items()),
                ]
            await send(message)

        await self._files(scope, receive, with_headers)
