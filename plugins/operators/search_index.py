"""Operators for the index's life: create, swap. Loading and verifying are Beam jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from plugins.hooks.search_index import SearchIndexHook

if TYPE_CHECKING:
    from airflow.sdk import Context


class CreateIndexOperator(BaseOperator):
    """Create an empty index for an embedder's vectors. Returns its name.

    :param card: the embedder's card, as a mapping. (templated)
    :param build: distinguishes this build's index from others of the same space. (templated)
    """

    template_fields: Sequence[str] = ("card", "build")

    def __init__(self, *, card: Any, build: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.card = card
        self.build = build

    def execute(self, context: Context) -> str:
        from models.embedder import EmbedderCard

        index = SearchIndexHook().create(EmbedderCard.model_validate(self.card), self.build)
        self.log.info("index %s awaits vectors of space %s", index.name, index.card.space)
        return index.name


class SwapAliasOperator(BaseOperator):
    """Point the alias to an index, away from any other, in one request. The previous index is kept. Returns its name.

    :param index: the index's full name. (templated)
    """

    template_fields: Sequence[str] = ("index",)

    def __init__(self, *, index: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.index = index

    def execute(self, context: Context) -> str | None:
        before = SearchIndexHook().swap(self.index)
        self.log.info("the alias points to %s, no longer to %s", self.index, before)
        return before
