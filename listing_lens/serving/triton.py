"""Embedding by a Triton Inference Server: this process prepares the photos, the server computes the vectors.

Every answer tells the space of its vectors, which is compared with the index's: whatever lies on the server by the number that
is asked for, a vector of another space is never searched with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from listing_lens.embedding.model_repository import cards_of
from listing_lens.errors import LensError
from listing_lens.serving.kserve import KServe, RefusedByServerError
from listing_lens.serving.limits import UnavailableError
from listing_lens.serving.query_embedder import QueryEmbedder
from models.embedder import EMBEDDING, MODEL, PIXELS, SPACE, EmbedderCard
from models.encoders.encoder import load_preparation
from models.encoders.preparation import Preparation

# A version's first batch may take this many seconds: the server prepares what it computes with.
_FIRST_S = 60.0


@dataclass(frozen=True)
class TritonEmbedder:
    """A version of listing-embedder on a server, which itself puts batches of several callers together.

    Attributes:
        version: its number, on the server and in MLflow.
        timeout_s: how long a batch may take.
    """

    server: KServe
    version: int
    card: EmbedderCard
    preparation: Preparation
    timeout_s: float
    at_once: int

    @property
    def image_side(self) -> int:
        return self.preparation.side

    async def embed(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """RGB images → unit vectors (n, dims) of the space.

        Raises:
            LensError: the server refuses the images, or its vectors are of another space.
            UnavailableError: it is away, busy, or too slow.
        """
        pixels = await asyncio.to_thread(lambda: np.stack([self.preparation.prepare(image) for image in images]))
        answer = await self.server.infer(MODEL, self.version, {PIXELS: pixels}, (EMBEDDING, SPACE), self.timeout_s)
        self._require_space(answer[SPACE], len(images))
        return self._require_vectors(answer[EMBEDDING], len(images))

    def _require_space(self, spaces: NDArray[np.str_], count: int) -> None:
        others = {str(space) for space in spaces.flat} - {self.card.space}
        if others or spaces.shape != (count, 1):
            raise LensError(
                f"{MODEL} version {self.version} on {self.server.name} answers in space {', '.join(sorted(others)) or 'none'}, "
                f"not in {self.card.space}: export the version again"
            )

    def _require_vectors(self, vectors: NDArray[np.float32], count: int) -> NDArray[np.float32]:
        if vectors.shape != (count, self.card.dims) or not np.isfinite(vectors).all():
            raise LensError(
                f"{MODEL} version {self.version} on {self.server.name} answers with vectors of shape {vectors.shape}, or such "
                f"that hold no numbers, instead of {(count, self.card.dims)}: export the version again"
            )
        return vectors


@dataclass(frozen=True)
class Triton:
    """Finds embedders on a Triton Inference Server, and has it load those that it does not hold yet.

    Attributes:
        server: the server.
        timeout_s: how long a batch may take.
        at_once: batches that the server gets side by side.
        trusted_code: hub ids with a pinned revision (id@commit) whose own code may run, to prepare images.
    """

    server: KServe
    timeout_s: float
    at_once: int
    trusted_code: tuple[str, ...] = ()

    async def load(self, card: EmbedderCard) -> QueryEmbedder:
        """The embedder that a card names.

        Raises:
            LensError: the server has no version of this space, or cannot load it; or how images are prepared cannot be
                found out.
            UnavailableError: the server is away.
        """
        preparation = await asyncio.to_thread(load_preparation, card.encoder_source, card.encoder_id, self.trusted_code)
        version = await self._version(card)
        embedder = TritonEmbedder(self.server, version, card, preparation, self.timeout_s, self.at_once)
        side = embedder.image_side
        await replace(embedder, timeout_s=_FIRST_S).embed([Image.new("RGB", (side, side))])
        return embedder

    async def close(self) -> None:
        await self.server.close()

    async def _version(self, card: EmbedderCard) -> int:
        """The version of a card's space, loaded."""
        version, problem = await self._ready_version(card), ""
        if version is None:
            try:
                await self.server.load(MODEL)
            except (RefusedByServerError, UnavailableError) as err:
                # Perhaps it loads by itself, and tells so when it is asked again.
                problem = f"; {err}"
            version = await self._ready_version(card)
        if version is None:
            raise LensError(
                f"{self.server.name} has loaded no {MODEL} of space {card.space}: export it with `lens triton export`{problem}"
            )
        return version

    async def _ready_version(self, card: EmbedderCard) -> int | None:
        config = await self.server.config(MODEL)
        cards = cards_of(config.get("parameters", {})) if config else {}
        of_space = [version for version, known in cards.items() if known.space == card.space]
        for version in of_space:
            if await self.server.is_ready(MODEL, version):
                return version
        return None
