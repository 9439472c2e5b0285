"""The queue in front of the encoder: who is embedded together, and who is refused because it would be too late."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from listing_lens.serving.limits import Budget, BusyError
from listing_lens.serving.query_encoding import QueryEncoding
from models.embedder import EmbedderCard

PHOTO = Image.new("RGB", (1, 1))


class ByHand:
    """An embedder whose batches are let through by hand."""

    card = EmbedderCard(encoder_source="", encoder_id="e", encoder_dims=1, projection_id="p", dims=1)
    image_side = 1
    at_once = 1

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self._go_on = asyncio.Semaphore(0)

    def let_through(self, batches: int = 1) -> None:
        for _ in range(batches):
            self._go_on.release()

    async def embed(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        self.sizes.append(len(images))
        await self._go_on.acquire()
        return np.ones((len(images), 1), np.float32)


def telling(story: Callable[[ByHand], Awaitable[None]]) -> None:
    async def tell() -> None:
        await story(ByHand())

    asyncio.run(tell())


async def settle() -> None:
    """Let all go on that can."""
    for _ in range(10):
        await asyncio.sleep(0)


class TestQueryEncoding:
    def test_embeds_together_who_waits_meanwhile(self) -> None:
        async def story(embedder: ByHand) -> None:
            encoding = QueryEncoding(10, 3)
            asked = [asyncio.create_task(encoding.embed(PHOTO, embedder, Budget.of(60))) for _ in range(6)]
            await settle()
            embedder.let_through(3)
            await asyncio.gather(*asked)
            assert embedder.sizes == [1, 3, 2]
            assert len(encoding) == 0

        telling(story)

    def test_refuses_more_than_may_wait(self) -> None:
        async def story(embedder: ByHand) -> None:
            encoding = QueryEncoding(2, 3)
            asked = [asyncio.create_task(encoding.embed(PHOTO, embedder, Budget.of(60))) for _ in range(3)]
            await settle()
            with pytest.raises(BusyError, match="2 photos wait for the encoder"):
                await encoding.embed(PHOTO, embedder, Budget.of(60))
            embedder.let_through(2)
            await asyncio.gather(*asked)

        telling(story)

    def test_refuses_at_once_who_would_be_too_late_and_says_when_to_come_back(self) -> None:
        async def story(embedder: ByHand) -> None:
            encoding = QueryEncoding(10, 3)
            encoding.photo_s = 2.0
            asked = [asyncio.create_task(encoding.embed(PHOTO, embedder, Budget.of(60))) for _ in range(3)]
            await settle()
            with pytest.raises(BusyError, match="more to do") as refused:
                await encoding.embed(PHOTO, embedder, Budget.of(23))
            assert refused.value.retry_after_s == 6
            asked.append(asyncio.create_task(encoding.embed(PHOTO, embedder, Budget.of(25))))
            await settle()
            embedder.let_through(2)
            await asyncio.gather(*asked)

        telling(story)

    def test_takes_a_photo_whenever_nothing_is_done_however_slow_the_last_one_was(self) -> None:
        """Otherwise one slow photo would have all others refused, and nobody would find that it has become quick again."""

        async def story(embedder: ByHand) -> None:
            encoding = QueryEncoding(10, 3)
            encoding.photo_s = 1000.0
            for _ in range(50):
                embedder.let_through()
                await encoding.embed(PHOTO, embedder, Budget.of(60))
            assert encoding.photo_s < 1

        telling(story)

    def test_does_not_embed_for_those_who_have_gone(self) -> None:
        async def story(embedder: ByHand) -> None:
            encoding = QueryEncoding(10, 3)
            first, gone, last = (asyncio.create_task(encoding.embed(PHOTO, embedder, Budget.of(60))) for _ in range(3))
            await settle()
            gone.cancel()
            await settle()
            embedder.let_through(2)
            await asyncio.gather(first, last)
            assert embedder.sizes == [1, 1]

        telling(story)

    def test_a_batch_that_fails_fails_for_its_own_photos_only(self) -> None:
        class Failing(ByHand):
            async def embed(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
                raise RuntimeError("out of memory")

        async def story(embedder: ByHand) -> None:
            encoding = QueryEncoding(10, 3)
            with pytest.raises(RuntimeError, match="out of memory"):
                await encoding.embed(PHOTO, Failing(), Budget.of(60))
            embedder.let_through()
            assert (await encoding.embed(PHOTO, embedder, Budget.of(60))).tolist() == [1]

        telling(story)
