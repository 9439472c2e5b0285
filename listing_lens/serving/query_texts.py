"""Embedding what buyers write, by the text tower of the live space's encoder: in this process, whatever computes the photos."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from listing_lens.embedding.embedder import TextEmbedder
from listing_lens.lake.windows import Lake
from models.embedder import EmbedderCard
from models.encoders.runtime import Runtime
from models.encoders.texts import NoTextTowerError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class QueryTexts:
    """Embeds texts in one space, or says why it cannot.

    Attributes:
        embedder: of the space; None if texts cannot be searched for.
        why_not: a sentence then; None if they can.
        threads: computes.
        at_once: how many batches it computes side by side.
    """

    embedder: TextEmbedder | None
    why_not: str | None
    threads: ThreadPoolExecutor
    at_once: int = 1

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts → unit vectors (n, dims) of the space."""
        assert self.embedder is not None, self.why_not
        return await asyncio.get_running_loop().run_in_executor(self.threads, self.embedder.embed, texts)


@dataclass(frozen=True)
class TextTowers:
    """Loads text towers into this process; two spaces of one encoder share it.

    Attributes:
        offered: whether texts can be searched for at all.
    """

    lake: Lake
    runtime: Runtime
    offered: bool
    # A thread of its own: a text is quick, and waits for no batch of photos.
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="query texts"))

    async def load(self, card: EmbedderCard) -> QueryTexts:
        """The texts of the space that a card names, or why they cannot be searched for."""
        if not self.offered:
            return QueryTexts(None, "searches by words are switched off here", self.threads)
        try:
            embedder = await asyncio.to_thread(TextEmbedder.load, card, self.lake, self.runtime)
        except NoTextTowerError:
            return QueryTexts(None, "the encoder of this catalog knows no words: search with a photo", self.threads)
        except Exception as err:  # noqa: BLE001
            # Photos can be searched with all the same.
            logger.error("space %s cannot be searched by words: %s", card.space, err)
            return QueryTexts(
                None, "this catalog cannot be searched by words just now: search with a photo", self.threads
            )
        return QueryTexts(embedder, None, self.threads)

    def close(self) -> None:
        """Let go of what computes."""
        self.threads.shutdown(wait=False)
