"""Embedding the photos of many requests: whoever waits while a batch is computed is in the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from listing_lens.serving.limits import WAITING_SHARE, Budget, BusyError, newest_counts
from listing_lens.serving.query_embedder import QueryEmbedder


@dataclass(eq=False)
class _Waiting:
    image: Image.Image
    embedder: QueryEmbedder
    budget: Budget
    vector: asyncio.Future[NDArray[np.float32]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    @property
    def wanted(self) -> bool:
        return not self.vector.done() and self.budget.left > 0


class QueryEncoding:
    """A bounded queue in front of embedders.

    Attributes:
        most_waiting: photos that may wait.
        most_together: photos in a batch.
        photo_s: the mean time of a photo within its batch, in seconds, as measured.
    """

    def __init__(self, most_waiting: int, most_together: int) -> None:
        self.most_waiting, self.most_together = most_waiting, most_together
        self.photo_s = 0.0
        self._waiting: deque[_Waiting] = deque()
        self._running: dict[asyncio.Task[None], int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    async def embed(self, image: Image.Image, embedder: QueryEmbedder, budget: Budget) -> NDArray[np.float32]:
        """An RGB image → its unit vector (dims,) in the embedder's space.

        Raises:
            BusyError: the queue is full, or its end would be reached too late.
        """
        self.require_time(embedder, budget)
        mine = _Waiting(image, embedder, budget)
        self._waiting.append(mine)
        self._start(embedder.at_once)
        try:
            async with asyncio.timeout(max(0.0, budget.left)):
                return await mine.vector
        except TimeoutError:
            late = "the encoder was busy for all of the request's time"
            raise BusyError(late, self._time_to_empty(embedder)) from None

    def require_time(self, embedder: QueryEmbedder, budget: Budget) -> None:
        """Raise BusyError if a photo that came now would be embedded too late, as far as can be told.

        Where nothing is being done, a photo is always taken: how long one takes now is not known otherwise.
        """
        if not self._running:
            return
        empty_s = self._time_to_empty(embedder)
        if len(self._waiting) >= self.most_waiting:
            raise BusyError(f"{len(self._waiting)} photos wait for the encoder, which is as many as may", empty_s)
        if empty_s > WAITING_SHARE * budget.left:
            raise BusyError("the encoder has more to do than can be done in the request's time", empty_s)

    def _time_to_empty(self, embedder: QueryEmbedder) -> float:
        """How long until all photos that run and wait now are embedded, in seconds."""
        photos = sum(self._running.values()) + len(self._waiting)
        return photos * self.photo_s / embedder.at_once

    def _start(self, at_once: int) -> None:
        while self._waiting and len(self._running) < at_once:
            batch = self._next_batch()
            if not batch:
                return
            self._running[asyncio.create_task(self._compute(batch))] = len(batch)

    def _next_batch(self) -> list[_Waiting]:
        """Those at the head of the queue that are still waited for, and whose photos are for one space."""
        batch: list[_Waiting] = []
        while self._waiting and len(batch) < self.most_together:
            if not self._waiting[0].wanted:
                self._waiting.popleft()
            elif batch and self._waiting[0].embedder is not batch[0].embedder:
                break
            else:
                batch.append(self._waiting.popleft())
        return batch

    async def _compute(self, batch: list[_Waiting]) -> None:
        loop, embedder = asyncio.get_running_loop(), batch[0].embedder
        began = loop.time()
        try:
            vectors = await embedder.embed([one.image for one in batch])
        except Exception as err:  # noqa: BLE001
            # Each request answers for itself.
            for one in batch:
                if not one.vector.done():
                    one.vector.set_exception(err)
        else:
            self.photo_s = newest_counts((loop.time() - began) / len(batch), self.photo_s)
            for one, vector in zip(batch, vectors, strict=True):
                if not one.vector.done():
                    one.vector.set_result(vector)
        finally:
            task = asyncio.current_task()
            assert task is not None
            del self._running[task]
            self._start(embedder.at_once)
