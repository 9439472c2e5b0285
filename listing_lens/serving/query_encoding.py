"""Embedding the photos of many requests: whoever waits while a batch is computed is in the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from listing_lens.serving.limits import Budget, BusyError
from listing_lens.serving.query_embedder import QueryEmbedder

# How much the newest batch counts in the mean time of a batch.
_NEWEST = 0.2


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
        batch_s: the mean time of a batch, in seconds, as measured.
    """

    def __init__(self, most_waiting: int, most_together: int) -> None:
        self.most_waiting, self.most_together = most_waiting, most_together
        self.batch_s = 0.0
        self._waiting: deque[_Waiting] = deque()
        self._running: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    async def embed(self, image: Image.Image, embedder: QueryEmbedder, budget: Budget) -> NDArray[np.float32]:
        """An RGB image → its unit vector (dims,) in the embedder's space.

        Raises:
            BusyError: the queue is full, or its end would be reached too late.
        """
        self._require_time(budget)
        mine = _Waiting(image, embedder, budget)
        self._waiting.append(mine)
        self._start(embedder.at_once)
        try:
            async with asyncio.timeout(max(0.0, budget.left)):
                return await mine.vector
        except TimeoutError:
            raise BusyError("the encoder was busy for all of the request's time", self._time_to_empty()) from None

    def _require_time(self, budget: Budget) -> None:
        if len(self._waiting) >= self.most_waiting:
            raise BusyError(
                f"{len(self._waiting)} photos wait for the encoder, which is as many as may", self._time_to_empty()
            )
        if self._time_to_empty() + self.batch_s > budget.left:
            raise BusyError("the encoder has more to do than can be done in the request's time", self._time_to_empty())

    def _time_to_empty(self) -> float:
        """How long until all that runs and waits now is done, in seconds."""
        batches = len(self._running) + -(-len(self._waiting) // self.most_together)
        return batches * self.batch_s

    def _start(self, at_once: int) -> None:
        while self._waiting and len(self._running) < at_once:
            batch = self._next_batch()
            if not batch:
                return
            task = asyncio.create_task(self._compute(batch))
            self._running.add(task)

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
            took = loop.time() - began
            self.batch_s = took if not self.batch_s else (1 - _NEWEST) * self.batch_s + _NEWEST * took
            for one, vector in zip(batch, vectors, strict=True):
                if not one.vector.done():
                    one.vector.set_result(vector)
        finally:
            task = asyncio.current_task()
            assert task is not None
            self._running.discard(task)
            self._start(embedder.at_once)
