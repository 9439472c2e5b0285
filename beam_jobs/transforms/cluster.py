"""The search cluster's address, as a job passes it to its workers."""

from __future__ import annotations

from dataclasses import dataclass

from listing_lens.search.index import PATIENCE_S, SearchIndex
from listing_lens.settings import Settings, load_settings


@dataclass(frozen=True)
class Cluster:
    """Where the indexes are. The API key comes from the worker's own environment, so it is not part of the job graph."""

    url: str
    alias: str

    @classmethod
    def of(cls, settings: Settings) -> Cluster:
        return cls(settings.elasticsearch_url, settings.alias)

    def connect(self) -> SearchIndex:
        """Open a client on the worker."""
        settings = load_settings(elasticsearch_url=self.url, alias=self.alias)
        return SearchIndex.connect(settings, patience_s=PATIENCE_S)
