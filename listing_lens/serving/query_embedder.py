"""The image embedding generator: loads the embedder of a space, and turns photos into vectors of that space.

One interface, whatever computes: this process, or a server for models.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from listing_lens.embedding.embedder import Embedder
from listing_lens.lake.windows import Lake
from models.embedder import EmbedderCard
from models.encoders.runtime import Runtime


class QueryEmbedder(Protocol):
    """Embeds photos in one space.

    Attributes:
        card: names the space.
        image_side: the side in pixels that photos are scaled to.
        at_once: how many batches it computes side by side.
    """

    @property
    def card(self) -> EmbedderCard: ...

    @property
    def image_side(self) -> int: ...

    @property
    def at_once(self) -> int: ...

    async def embed(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """RGB images → unit vectors (n, dims) of the space."""
        ...


class Generator(Protocol):
    """Loads embedders."""

    async def load(self, card: EmbedderCard) -> QueryEmbedder:
        """The embedder that a card names, ready to compute. Raises LensError if it is not to be had."""
        ...

    async def close(self) -> None:
        """Let go of what it computes with."""
        ...


@dataclass(frozen=True)
class InProcessEmbedder:
    """An embedder in this process. Batches are computed one after the other: each takes all cores."""

    embedder: Embedder
    card: EmbedderCard
    threads: ThreadPoolExecutor
    at_once: int = 1

    @property
    def image_side(self) -> int:
        return self.embedder.encoder.image_side

    async def embed(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        return await asyncio.get_running_loop().run_in_executor(self.threads, self.embedder.embed, images)


@dataclass(frozen=True)
class InProcess:
    """Loads embedders into this process; two spaces of one encoder share it."""

    lake: Lake
    runtime: Runtime
    threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="query embedder")
    )

    async def load(self, card: EmbedderCard) -> QueryEmbedder:
        embedder = await asyncio.to_thread(Embedder.load, card, self.lake, self.runtime)
        loaded = InProcessEmbedder(embedder, card, self.threads)
        # The first batch is much slower than all others.
        side = loaded.image_side
        await loaded.embed([Image.new("RGB", (side, side))])
        return loaded

    async def close(self) -> None:
        self.threads.shutdown(wait=False)
