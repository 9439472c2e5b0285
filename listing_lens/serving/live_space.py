"""Following the alias: the index that is searched and the embedders of its queries change together, in one step.

A request takes them at its beginning and keeps them to its end. Until the embedder of a new index is loaded, requests go to
the index before, which is kept for rollback; they never go to an index in whose space they cannot be embedded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from listing_lens.errors import LensError
from listing_lens.search.index import Index
from listing_lens.serving.index_reader import IndexReader
from listing_lens.serving.limits import Budget, UnavailableError
from listing_lens.serving.query_embedder import Generator, QueryEmbedder
from listing_lens.serving.query_texts import QueryTexts, TextTowers

logger = logging.getLogger(__name__)

# How long the cluster has to say where the alias points.
_ASKING_S = 5.0
# How long until an embedder that could not be loaded is tried again.
_AGAIN_S = 10.0


@dataclass(frozen=True)
class LiveSpace:
    """An index, and what embeds photos and texts in its space."""

    index: Index
    embedder: QueryEmbedder
    texts: QueryTexts

    def __post_init__(self) -> None:
        if self.embedder.card.space != self.index.card.space:
            raise LensError(
                f"index {self.index.name} is of space {self.index.card.space}, the embedder of {self.embedder.card.space}"
            )


class Follower:
    """Knows the live space, and follows the alias to the next one.

    Attributes:
        problem: why the alias is not followed just now, as a sentence; None if it is.
        is_empty: whether the alias was seen to point to no index.
    """

    def __init__(
        self,
        reader: IndexReader,
        generator: Generator,
        text_towers: TextTowers,
        every_s: float,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._reader, self._every_s, self._sleep = reader, every_s, sleep
        self._generator, self._text_towers = generator, text_towers
        self._live: LiveSpace | None = None
        self.problem: str | None = "the live index is still looked for"
        self.is_empty = False

    @property
    def live(self) -> LiveSpace | None:
        return self._live

    def require(self) -> LiveSpace:
        """The live space. Raises UnavailableError before there is one."""
        if self._live is None:
            raise UnavailableError(f"nothing can be searched yet: {self.problem}", self._every_s)
        return self._live

    async def follow(self) -> None:
        """Follow the alias until cancelled."""
        while True:
            followed = await self.step()
            await self._sleep(self._every_s if followed else max(self._every_s, _AGAIN_S))

    async def step(self) -> bool:
        """Look where the alias points, and go there. Returns False when an embedder could not be loaded."""
        try:
            index = await self._reader.live(Budget.of(_ASKING_S))
        except Exception as err:  # noqa: BLE001
            # Whatever it is, the space before goes on to be searched: whether the cluster answers is found by each request.
            self._note(str(err))
            return True
        self.is_empty = index is None
        if index is None:
            self._live = None
            self._note(f"alias {self._reader.alias!r} points to no index yet: build one with `lens index rebuild`")
            return True
        if self._live and self._live.index.uuid == index.uuid:
            self._note(None)
            return True
        return await self._go_to(index)

    async def _go_to(self, index: Index) -> bool:
        if self._live and self._live.index.card == index.card:
            embedder, texts = self._live.embedder, self._live.texts
        else:
            try:
                embedder = await self._generator.load(index.card)
                texts = await self._text_towers.load(index.card)
            except Exception as err:  # noqa: BLE001
                # Whatever it is, the space before can still be searched.
                self._note(
                    f"the embedder of index {index.name} cannot be loaded, so the one before is still searched: {err}"
                )
                return False
        self._live = LiveSpace(index, embedder, texts)
        self._note(None)
        logger.info("searching index %s", index.name, extra={"index": index.name, "space": index.card.space})
        return True

    def _note(self, problem: str | None) -> None:
        if problem and problem != self.problem:
            logger.warning("%s", problem)
        self.problem = problem
