"""The search cluster, as a job takes it along to its workers."""

from __future__ import annotations

from dataclasses import dataclass

from listing_lens.search.index import SearchIndex
from listing_lens.settings import Settings, load_settings


@dataclass(frozen=True)
class Cluster:
    """Where the indexes are. The key comes from the worker's own environment, so that it is not in the job's graph."""

    url: str
    alias: str

    @classmethod
    def of(cls, settings: Settings) -> Cluster:
        return cls(settings.elasticsearch_url, settings.alias)

    def connect(self) -> SearchIndex:
        """Open a client, from wherever the worker is."""
        return SearchIndex.connect(load_settings(elasticsearch_url=self.url, alias=self.alias))
