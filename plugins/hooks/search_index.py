"""The search index, for operators."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from airflow.sdk.bases.hook import BaseHook

from listing_lens.settings import load_settings

if TYPE_CHECKING:
    from listing_lens.search.index import Index, SearchIndex
    from models.embedder import EmbedderCard


class SearchIndexHook(BaseHook):
    """Creates indexes and moves the alias.

    The cluster is the one that the LENS_ settings name rather than an Airflow connection: the Beam jobs that fill the
    index run as processes of their own and read the same settings, so there is one address to set, not two.
    """

    @cached_property
    def search_index(self) -> SearchIndex:
        from listing_lens.search.index import SearchIndex

        return SearchIndex.connect(load_settings())

    def create(self, card: EmbedderCard, build: str) -> Index:
        """Create the index of a build; used as it is if an earlier attempt made it."""
        return self.search_index.create(card, build)

    def swap(self, name: str) -> str | None:
        """Point the alias to an index in one request. Returns the index that it pointed to."""
        return self.search_index.swap(name)
