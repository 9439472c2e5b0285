"""The queue in front of the encoder: who waits is batched, spaces are never mixed, and what is not wanted is not computed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from listing_lens.serving.limits import Budget, BusyError
from listing_lens.serving.query_encoding import QueryEncoding
from models.embedder import EmbedderCard

BLACK = Image.new("RGB", (8, 8))


def card(space: str) -> EmbedderCard:
    return EmbedderCard(encoder_source="x", encoder_id=f"enc-{space}", encoder_dims=4, projection_id="p", dims=2)


@dataclass(eq=False)
class ByHand:
    """An embedder whose batches end when the test says so. A photo's vector is its first pixel and the space's number."""

    number: int
    at_once: int = 1
    image_side: int = 8
    batches: list[int] = field(default_factory=list)
    going_on: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    error: Exception | None = None

    @property
    def card(self) -> EmbedderCard:
        return card(str(self.number))

    async def embed(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        self.batches.append(len(images))
        await self.going_on.acquire()
        if self.error:
            raise self.error
        return np.array([[image.getpixel((0, 0))[0], self.number] for image in images], np.float32)  # type: ignore[index]


def grey(shade: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (shade,) * 3)


async def turns(count: int = 5) -> None:
    """Let whatever can go on do so."""
    for _ in range(count):
        await asyncio.sleep(0)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


def test_whoever_waits_while_a_batch_is_computed_is_in_the_next_one() -> None:
    async def test() -> None:
        encoding, embedder = QueryEncoding("photos", 32, 4), ByHand(1)
        asking = [asyncio.create_task(encoding.embed(grey(n), embedder, Budget.of(60))) for n in range(7)]
        await turns()
        for _ in range(3):
            embedder.going_on.release()
            await turns()
        vectors = await asyncio.gather(*asking)
        assert [int(vector[0]) for vector in vectors] == list(range(7))
        assert embedder.batches == [1, 4, 2]

    run(test)


def test_a_batch_is_of_one_space() -> None:
    async def test() -> None:
        encoding, old, new = QueryEncoding("photos", 32, 8), ByHand(1), ByHand(2)
        embedders = [old, old, old, new, new, old]
        asking = [
            asyncio.create_task(encoding.embed(grey(n), embedder, Budget.of(60)))
            for n, embedder in enumerate(embedders)
        ]
        for _ in range(4):
            await turns()
            old.going_on.release()
            new.going_on.release()
        vectors = await asyncio.gather(*asking)
        assert [(int(shade), int(space)) for shade, space in vectors] == [
            (n, embedder.number) for n, embedder in enumerate(embedders)
        ]
        assert (old.batches, new.batches) == ([1, 2, 1], [2])

    run(test)


def test_a_full_queue_refuses_at_once() -> None:
    async def test() -> None:
        encoding, embedder = QueryEncoding("photos", 2, 1), ByHand(1)
        asking = [asyncio.create_task(encoding.embed(BLACK, embedder, Budget.of(60))) for _ in range(3)]
        await turns()
        with pytest.raises(BusyError, match="2 photos wait"):
            await encoding.embed(BLACK, embedder, Budget.of(60))
        for task in asking:
            task.cancel()

    run(test)


def test_who_would_be_too_late_is_refused_at_once_and_told_when_to_come_back() -> None:
    async def test() -> None:
        encoding, embedder = QueryEncoding("photos", 10, 3), ByHand(1)
        encoding.one_s = 2.0
        asking = [asyncio.create_task(encoding.embed(BLACK, embedder, Budget.of(60))) for _ in range(3)]
        await turns()
        with pytest.raises(BusyError, match="more to do") as refused:
            await encoding.embed(BLACK, embedder, Budget.of(23))
        assert refused.value.retry_after_s == 6
        asking.append(asyncio.create_task(encoding.embed(BLACK, embedder, Budget.of(25))))
        await turns()
        for _ in range(2):
            embedder.going_on.release()
        await asyncio.gather(*asking)

    run(test)


def test_a_photo_is_taken_whenever_nothing_is_done_however_slow_the_last_one_was() -> None:
    """Otherwise one slow photo would have all others refused, and nobody would find that it has become quick again."""

    async def test() -> None:
        encoding, embedder = QueryEncoding("photos", 10, 3), ByHand(1)
        encoding.one_s = 1000.0
        for _ in range(50):
            embedder.going_on.release()
            await encoding.embed(BLACK, embedder, Budget.of(60))
        assert encoding.one_s < 1

    run(test)


def test_what_nobody_waits_for_any_more_is_not_computed() -> None:
    async def test() -> None:
        encoding, embedder = QueryEncoding("photos", 32, 8), ByHand(1)
        first = asyncio.create_task(encoding.embed(BLACK, embedder, Budget.of(60)))
        await turns()
        gone = asyncio.create_task(encoding.embed(BLACK, embedder, Budget.of(60)))
        last = asyncio.create_task(encoding.embed(grey(9), embedder, Budget.of(60)))
        await turns()
        gone.cancel()
        await turns()
        embedder.going_on.release()
        await turns()
        embedder.going_on.release()
        await asyncio.gather(first, last)
        assert embedder.batches == [1, 1]
        assert gone.cancelled()

    run(test)


def test_a_budget_that_ends_while_waiting_refuses_and_frees_the_place() -> None:
    async def test() -> None:
        encoding, embedder = QueryEncoding("photos", 1, 1), ByHand(1)
        first = asyncio.create_task(encoding.embed(BLACK, embedder, Budget.of(60)))
        await turns()
        with pytest.raises(BusyError, match="busy for all of the request's time"):
            await encoding.embed(BLACK, embedder, Budget.of(0.01))
        embedder.going_on.release()
        await first
        embedder.going_on.release()
        await encoding.embed(BLACK, embedder, Budget.of(60))
        assert len(encoding) == 0

    run(test)


def test_a_batch_that_fails_fails_its_own_requests_and_no_other() -> None:
    async def test() -> None:
        encoding, embedder = QueryEncoding("photos", 32, 8), ByHand(1, error=RuntimeError("out of memory"))
        first = asyncio.create_task(encoding.embed(BLACK, embedder, Budget.of(60)))
        await turns()
        second = asyncio.create_task(encoding.embed(grey(7), embedder, Budget.of(60)))
        await turns()
        embedder.going_on.release()
        with pytest.raises(RuntimeError, match="out of memory"):
            await first
        embedder.error = None
        embedder.going_on.release()
        assert (await second)[0] == 7

    run(test)
