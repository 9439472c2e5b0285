"""Watches whether the champion in MLflow is what the live index serves. What is heavy to import is imported by the first look."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from listing_lens.settings import load_settings

logger = logging.getLogger(__name__)


class ChampionTrigger(BaseEventTrigger):
    """Fires when the champion is not live, or when nothing tells how it became the champion.

    It compares what is, so nothing is lost while it is not running. It fires once for a champion and a live index, and again
    when one of them has changed, or after they were in agreement.

    :param poll_s: seconds between two looks.
    """

    def __init__(self, poll_s: float = 30.0) -> None:
        super().__init__()
        self.poll_s = poll_s
        self._fired: dict[str, Any] | None = None
        self._trouble = ""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """How Airflow makes it anew in a triggerer."""
        return "plugins.triggers.champion.ChampionTrigger", {"poll_s": self.poll_s}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look for ever; an event's payload is only for people."""
        while True:
            event = await self._look()
            if event is not None:
                yield event
            await asyncio.sleep(self.poll_s)

    async def _look(self) -> TriggerEvent | None:
        try:
            unsettled = await asyncio.to_thread(_unsettled)
        except Exception as err:  # noqa: BLE001 - a watch that ended would not begin again before the triggerer is restarted
            self._say(f"the champion is not watched for now, the next look is in {self.poll_s:.0f} s: {err}")
            return None
        self._say("")
        if unsettled == self._fired:
            return None
        self._fired = unsettled
        return None if unsettled is None else TriggerEvent(unsettled)

    def _say(self, trouble: str) -> None:
        """Log a trouble when it begins, and that it is over; what lasts is not repeated at every look."""
        if trouble != self._trouble:
            if trouble:
                logger.warning("%s", trouble)
            else:
                logger.info("the champion is watched again")
        self._trouble = trouble


def _unsettled() -> dict[str, Any] | None:
    """The champion and the live index, if something is left to do about them. The settings are read anew each time."""
    from listing_lens import registration

    # The clients would log every request, twice a minute for ever, and every failure with its traceback.
    for client in ("elastic_transport", "httpx"):
        logging.getLogger(client).setLevel(logging.ERROR)
    at = registration.standing(load_settings())
    if at.is_settled or at.champion is None:
        return None
    return {"version": at.champion.version, "live": at.live.name if at.live else None}
