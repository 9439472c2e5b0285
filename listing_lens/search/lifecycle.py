"""The rules of the index's life: what has to follow when the champion is not what the live index serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from listing_lens.search.index import Index

if TYPE_CHECKING:
    # MLflow is heavy to import.
    from models.registry import RegisteredEmbedder


@dataclass(frozen=True)
class Move:
    """What brings the champion live.

    Attributes:
        kind: build a new index, or point the alias back to one that was kept.
        version: of listing-embedder: the champion's.
        index: the one to roll back to; None for a rebuild.
    """

    kind: Literal["rebuild", "rollback"]
    version: int
    index: str | None = None


def what_follows(champion: RegisteredEmbedder | None, live: Index | None, kept: Sequence[Index]) -> Move | None:
    """What brings the champion live; None if there is no champion, or the live index is of its space already.

    `kept` are the indexes that may serve again as they are. Of several of the champion's space the newest is taken.
    """
    if champion is None or (live is not None and live.card.space == champion.card.space):
        return None
    ready = [index for index in kept if index.card.space == champion.card.space]
    if not ready:
        return Move("rebuild", champion.version)
    return Move("rollback", champion.version, max(ready, key=lambda index: index.build).name)
