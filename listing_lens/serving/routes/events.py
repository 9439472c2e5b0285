"""What buyers did with results."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter

from listing_lens.serving.callers import Caller
from listing_lens.serving.problems import responses
from listing_lens.serving.service import TheService, counted
from listing_lens.serving.wire import Events, Stored

router = APIRouter(tags=["events"])


@router.post(
    "/events", status_code=202, summary="Tell what buyers did", responses=responses(400, 401, 403, 413, 422, 429, 503)
)
async def events(told: Events, service: TheService, caller: Annotated[Caller, counted("events")]) -> Stored:
    """Impressions, taps, item views and purchases. They are stored when this answers.

    An event of a search that is not known, or of an item that it did not show, is left out of the evaluation and counted.
    """
    if not service.settings.search_open_events:
        caller.require_known("events")
    return Stored(stored=await service.search_log.store_events(told.events))
