"""Listings written to indexes on a worker: what it needs for that, and what becomes of those that no index can hold."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from beam_jobs.transforms.cluster import Cluster
from listing_lens.embedding.sources import encoder_runtime
from listing_lens.images.source import ImageSource
from listing_lens.indexing.set_aside import SetAside
from listing_lens.lake.windows import Lake
from listing_lens.search.builds import Builds
from listing_lens.settings import Settings
from models.encoders.runtime import Runtime

if TYPE_CHECKING:
    # It imports torch, which takes seconds: a job that has nothing to write does without.
    from listing_lens.indexing.indexer import Indexer


@dataclass(frozen=True)
class Indexing:
    """What a worker needs to write listings to indexes: it does not have the settings of whoever starts the job."""

    lake: Lake
    cluster: Cluster
    images: ImageSource
    runtime: Runtime

    @classmethod
    def of(cls, settings: Settings) -> Indexing:
        return cls(Lake(settings.lake), Cluster.of(settings), ImageSource.of(settings), encoder_runtime(settings))

    def connect(self) -> Indexer:
        """Open the worker's indexer."""
        from listing_lens.indexing.indexer import Indexer

        return Indexer.with_embedders_of(self.lake, Builds(self.cluster.connect()), self.images, self.runtime)

    def set_aside(self) -> SetAside:
        """Where the worker keeps what cannot be used."""
        return SetAside.of(self.lake, writer_of_this_host())


def writer_of_this_host() -> str:
    """Names a worker among those that write to a log."""
    return socket.gethostname().replace("-", ".")
