"""A client of the search service."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urljoin

import httpx
from PIL import Image

from listing_lens.errors import LensError
from listing_lens.search.queries import Hit
from models.images import ImageError, ImageLimits, decode_image

_TIMEOUT_S = 30.0
_POLL_S = 0.5


class ServiceAwayError(Exception):
    """The service cannot be reached."""


@dataclass(frozen=True)
class Answer:
    """What was found for a query, in which index, by decreasing similarity."""

    index: str
    space: str
    hits: list[Hit]


class SearchClient:
    """Asks the service at an address."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/") + "/"
        self._http = httpx.Client(base_url=self._url, timeout=_TIMEOUT_S)

    def __enter__(self) -> SearchClient:
        return self

    def __exit__(self, _type: type | None, _error: BaseException | None, _traceback: TracebackType | None) -> None:
        self._http.close()

    def search(self, photos: Sequence[bytes], text: str, k: int, text_weight: float) -> Answer:
        """The k listings that are most like encoded photos of one item, or words, or both. The service keeps nothing of it.

        Args:
            photos, text: one of them may be empty.
            text_weight: how much the words count beside the photos, from 0 to 1.

        Raises:
            ServiceAwayError: it cannot be reached.
            LensError: it refuses.
        """
        asked: dict[str, Any] = {"k": k, "keep": "false"}
        if text:
            asked["text"] = text
        if photos:
            form = [("photo", ("photo", photo, "application/octet-stream")) for photo in photos]
            answer = self._ask("POST", "search", params={**asked, "text_weight": text_weight}, files=form)
        else:
            answer = self._ask("GET", "search", params=asked)
        if not answer.is_success:
            raise LensError(f"the search service at {self._url} answers {answer.status_code}: {_detail(answer)}")
        found = answer.json()
        return Answer(found["index"], found["space"], [self._hit(one) for one in found["results"]])

    def wait_until_searching(self, index: str, timeout_s: float = 300.0) -> None:
        """Wait until an index is the one that is searched: its embedder has to be loaded first.

        Raises:
            LensError: it took longer, or the service ended.
        """
        until = time.monotonic() + timeout_s
        while True:
            try:
                health = self._ask("GET", "health/ready").json()
            except ServiceAwayError as err:
                raise LensError(f"{err}: `lens status` says more") from err
            if health["state"] == "ready" and health["index"] == index:
                return
            if time.monotonic() > until:
                problems = "; ".join(health["problems"]) or f"it searches {health['index']}"
                raise LensError(f"the search service does not search {index} after {timeout_s:.0f} s: {problems}")
            time.sleep(_POLL_S)

    def photo(self, hit: Hit, limits: ImageLimits) -> Image.Image | None:
        """A listing's photo, small; None if it cannot be shown."""
        try:
            answer = self._ask("GET", hit.image_uri)
            return decode_image(answer.content, limits) if answer.is_success else None
        except (ServiceAwayError, ImageError):
            return None

    def _hit(self, found: dict[str, Any]) -> Hit:
        return Hit(
            item_id=found["item_id"],
            score=found["score"],
            title=found["title"],
            category=tuple(found["category"]),
            price=found["price"],
            status=found["status"],
            image_uri=urljoin(self._url, found["photo"].lstrip("/")),
        )

    def _ask(self, method: str, address: str, **request: Any) -> httpx.Response:
        try:
            return self._http.request(method, address, **request)
        except httpx.TransportError as err:
            raise ServiceAwayError(f"the search service at {self._url} cannot be reached") from err


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return answer.reason_phrase
