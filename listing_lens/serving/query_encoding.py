"""Embedding what many requests ask for: whoever waits while a batch is computed is in the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from listing_lens.serving.limits import WAITING_SHARE, Budget, BusyError, newest_counts

Asked = TypeVar("Asked")
_Given = TypeVar("_Given", contravariant=True)


class BatchEmbedder(Protocol[_Given]):
    """Embeds batches in one space."""

    @property
    def at_once(self) -> int:
        """How many batches it computes side by side."""
        ...

    async def embed(self, asked: Sequence[_Given], /) -> NDArray[np.float32]:
        """n photos or texts → unit vectors (n, dims)."""
        ...


@dataclass(eq=False)
class _Waiting(Generic[Asked]):
    asked: Asked
    embedder: BatchEmbedder[Asked]
    budget: Budget
    vector: asyncio.Future[NDArray[np.float32]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    @property
    def wanted(self) -> bool:
        return not self.vector.done() and self.budget.left > 0


class QueryEncoding(Generic[Asked]):
    """A bounded queue in front of embedders.

    Attributes:
        what: waits in it: photos or texts.
        most_waiting: how many may wait.
        most_together: how many are in a batch.
        one_s: the mean time of one within its batch, in seconds, as measured.
    """

    def __init__(self, what: str, most_waiting: int, most_together: int) -> None:
        self.what, self.most_waiting, self.most_together = what, most_waiting, most_together
        self.one_s = 0.0
        self._waiting: deque[_Waiting[Asked]] = deque()
        self._running: dict[asyncio.Task[None], int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    async def embed(self, asked: Asked, embedder: BatchEmbedder[Asked], budget: Budget) -> NDArray[np.float32]:
        """An RGB image or a text → its unit vector (dims,) in the embedder's space.

        Raises:
            BusyError: the queue is full, or its end would be reached too late.
        """
        self.require_time(embedder, budget)
        mine = _Waiting(asked, embedder, budget)
        self._waiting.append(mine)
        self._start(embedder.at_once)
        try:
            async with asyncio.timeout(max(0.0, budget.left)):
                return await mine.vector
        except TimeoutError:
            late = "the encoder was busy for all of the request's time"
            raise BusyError(late, self._time_to_empty(embedder)) from None

    def require_time(self, embedder: BatchEmbedder[Asked], budget: Budget) -> None:
        """Raise BusyError if what came now would be embedded too late, as far as can be told.

        Where nothing is being done, it is always taken: how long one takes now is not known otherwise.
        """
        if not self._running:
            return
        empty_s = self._time_to_empty(embedder)
        if len(self._waiting) >= self.most_waiting:
            raise BusyError(f"{len(self._waiting)} {self.what} wait for the encoder, which is as many as may", empty_s)
        if empty_s > WAITING_SHARE * budget.left:
            raise BusyError("the encoder has more to do than can be done in the request's time", empty_s)

    def _time_to_empty(self, embedder: BatchEmbedder[Asked]) -> float:
        """How long until all that run and wait now are embedded, in seconds."""
        count = sum(self._running.values()) + len(self._waiting)
        return count * self.one_s / embedder.at_once

    def _start(self, at_once: int) -> None:
        while self._waiting and len(self._running) < at_once:
            batch = self._next_batch()
            if not batch:
                return
            self._running[asyncio.create_task(self._compute(batch))] = len(batch)

    def _next_batch(self) -> list[_Waiting[Asked]]:
        """Those at the head of the queue that are still waited for, and are for one space."""
        batch: list[_Waiting[Asked]] = []
        while self._waiting and len(batch) < self.most_together:
            if not self._waiting[0].wanted:
                self._waiting.popleft()
            elif batch and self._waiting[0].embedder is not batch[0].embedder:
                break
            else:
                batch.append(self._waiting.popleft())
        return batch

    async def _compute(self, batch: list[_Waiting[Asked]]) -> None:
        loop, embedder = asyncio.get_running_loop(), batch[0].embedder
        began = loop.time()
        try:
            vectors = await embedder.embed([one.asked for one in batch])
        except Exception as err:  # noqa: BLE001
            # Each request answers for itself.
            for one in batch:
                if not one.vector.done():
                    one.vector.set_exception(err)
        else:
            self.one_s = newest_counts((loop.time() - began) / len(batch), self.one_s)
            for one, vector in zip(batch, vectors, strict=True):
                if not one.vector.done():
                    one.vector.set_result(vector)
        finally:
            task = asyncio.current_task()
            assert task is not None
            del self._running[task]
            self._start(embedder.at_once)
