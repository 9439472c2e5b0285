"""Errors as the service answers them: problem details (RFC 9457), which name the field that is at fault."""

from __future__ import annotations

import logging
import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from listing_lens.errors import LensError
from listing_lens.serving.limits import BusyError, RefusedError, UnavailableError

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


class ProblemBody(BaseModel):
    """Problem details (RFC 9457)."""

    title: str
    status: int
    detail: str
    # The parameter, header or part of the body that is at fault.
    field: str | None = Field(default=None)


class Problem(Exception):
    """A request that cannot be answered, and why."""

    def __init__(self, status: int, title: str, detail: str, field: str | None = None) -> None:
        super().__init__(detail)
        self.body = ProblemBody(title=title, status=status, detail=detail, field=field)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Problems that an operation may answer with, for its OpenAPI."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemBody"}}}
    return {status: {"description": _TITLES[status], "content": content, "model": ProblemBody} for status in statuses}


_TITLES = {
    400: "Not understood",
    401: "Not identified",
    403: "Not allowed",
    404: "Not found",
    405: "No such method",
    408: "Too slow",
    411: "Of unknown length",
    413: "Too large",
    415: "Not of a type that is understood",
    422: "Not valid",
    429: "Too many requests",
    503: "Not available",
}


def install(app: FastAPI) -> None:
    """Answer every error with problem details."""
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(RefusedError, _on_refused)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(LensError, _on_lens_error)
    app.add_exception_handler(Exception, _on_fault)


def answer(body: ProblemBody, headers: dict[str, str] | None = None) -> JSONResponse:
    """Problem details as a response."""
    return JSONResponse(
        body.model_dump(exclude_none=True), status_code=body.status, headers=headers, media_type=MEDIA_TYPE
    )


async def _on_problem(_request: Request, problem: Exception) -> JSONResponse:
    assert isinstance(problem, Problem)
    return answer(problem.body)


async def _on_invalid(_request: Request, err: Exception) -> JSONResponse:
    assert isinstance(err, RequestValidationError)
    first = err.errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    return answer(ProblemBody(title=_TITLES[422], status=422, detail=f"{field}: {first['msg']}", field=field))


async def _on_refused(_request: Request, err: Exception) -> JSONResponse:
    assert isinstance(err, RefusedError)
    status = 429 if isinstance(err, BusyError) else 503
    assert isinstance(err, BusyError | UnavailableError)
    headers = {"Retry-After": str(max(1, math.ceil(err.retry_after_s)))}
    return answer(ProblemBody(title=_TITLES[status], status=status, detail=err.reason), headers)


async def _on_http(_request: Request, err: Exception) -> JSONResponse:
    assert isinstance(err, HTTPException)
    title = _TITLES.get(err.status_code, "Not answered")
    headers = dict(err.headers) if err.headers else None
    return answer(ProblemBody(title=title, status=err.status_code, detail=str(err.detail)), headers)


async def _on_lens_error(_request: Request, err: Exception) -> JSONResponse:
    # The sentence is for those who run the service: it may name places that are no business of whoever asked.
    logger.error("%s", err)
    detail = "the service is not set up to answer this: its log says why"
    return answer(ProblemBody(title=_TITLES[503], status=503, detail=detail))


async def _on_fault(_request: Request, err: Exception) -> JSONResponse:
    logger.error("a request failed", exc_info=err)
    return answer(ProblemBody(title="Fault", status=500, detail="the service failed: its log says why"))
