"""Photos on their way to embeddings: fetched, decoded and prepared in threads ahead of the model, encoded in full batches."""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from beam_jobs.image_loader import ImageLoader, Unusable, loading_threads
from listing_lens.images.source import ImageSource
from models.encoders.encoder import Encoder

Item = TypeVar("Item")
Encode = Callable[[NDArray[Any]], NDArray[np.float32]]

# How many batches of photos are loaded, or being loaded, before the model: it never waits for one slow photo.
_BATCHES_AHEAD = 3
# What the embeddings of photos that were seen may take.
_SEEN_BYTES = 128 * 2**20


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A photo by its bytes' hash: prepared for the model, or already embedded."""

    digest: bytes
    prepared: NDArray[Any] | None
    embedding: NDArray[np.float32] | None


class SeenPhotos:
    """Embeddings (dims,) by the hash of their photo's bytes, the least recently used forgotten first. Threads may share it."""

    def __init__(self, dims: int, max_bytes: int = _SEEN_BYTES) -> None:
        self._most = max(1, max_bytes // (4 * dims))
        self._embeddings: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self._lock = Lock()

    def get(self, digest: bytes) -> NDArray[np.float32] | None:
        with self._lock:
            if digest in self._embeddings:
                self._embeddings.move_to_end(digest)
            return self._embeddings.get(digest)

    def add(self, digest: bytes, embedding: NDArray[np.float32]) -> None:
        with self._lock:
            self._embeddings[digest] = embedding
            if len(self._embeddings) > self._most:
                self._embeddings.popitem(last=False)


_seen_lock = Lock()


@lru_cache(maxsize=1)
def _seen_once(run: str, dims: int) -> SeenPhotos:
    return SeenPhotos(dims)


def seen_in(run: str, dims: int) -> SeenPhotos:
    """What this process has seen in a run, whichever thread asks."""
    with _seen_lock:
        return _seen_once(run, dims)


class PhotoEmbedder(Generic[Item]):
    """Embeds the photos of items in the order in which they are added; the same bytes are encoded once.

    Results come some batches after their items, and the last with `flush`.

    Attributes:
        encoded: how many photos the model has encoded.
    """

    def __init__(
        self, images: ImageSource, encoder: Encoder, encode: Encode, batch_size: int, seen: SeenPhotos
    ) -> None:
        self.encoded = 0
        self._loader = ImageLoader(images, encoder.image_side)
        self._encoder = encoder
        self._encode = encode
        self._batch_size = batch_size
        self._seen = seen
        self._ahead: deque[tuple[Item, Future[_Loaded | Unusable]]] = deque()

    def add(self, item: Item, uri: str) -> Iterator[tuple[Item, NDArray[np.float32] | Unusable]]:
        """Take one more; results of earlier ones, (dims,) of unit length or why there is none, a batch at a time."""
        self._ahead.append((item, loading_threads().submit(self._load, uri)))
        while len(self._ahead) >= _BATCHES_AHEAD * self._batch_size:
            yield from self._next_batch()

    def flush(self) -> Iterator[tuple[Item, NDArray[np.float32] | Unusable]]:
        """The results that are still to come."""
        while self._ahead:
            yield from self._next_batch()

    def clear(self) -> None:
        """Forget what was added and has no result yet."""
        for _, loading in self._ahead:
            loading.cancel()
        self._ahead.clear()

    def _load(self, uri: str) -> _Loaded | Unusable:
        data = self._loader.fetch(uri)
        if isinstance(data, Unusable):
            return data
        digest = hashlib.blake2b(data, digest_size=16).digest()
        embedding = self._seen.get(digest)
        if embedding is not None:
            return _Loaded(digest, None, embedding)
        image = self._loader.decode(data)
        return image if isinstance(image, Unusable) else _Loaded(digest, self._encoder.prepare(image), None)

    def _next_batch(self) -> Iterator[tuple[Item, NDArray[np.float32] | Unusable]]:
        """As many of the next items as make a full batch of photos that are new."""
        taken: list[tuple[Item, _Loaded | Unusable]] = []
        new: dict[bytes, NDArray[Any]] = {}
        known: dict[bytes, NDArray[np.float32]] = {}
        while self._ahead and len(new) < self._batch_size:
            item, loading = self._ahead.popleft()
            loaded = loading.result()
            taken.append((item, loaded))
            if isinstance(loaded, Unusable) or loaded.digest in new or loaded.digest in known:
                continue
            # It may have been encoded since it was loaded.
            embedding = loaded.embedding if loaded.embedding is not None else self._seen.get(loaded.digest)
            if embedding is not None:
                known[loaded.digest] = embedding
            else:
                assert loaded.prepared is not None
                new[loaded.digest] = loaded.prepared
        if new:
            for digest, embedding in zip(new, self._encode(np.stack(list(new.values()))), strict=True):
                known[digest] = embedding
                # A copy: a view would hold its whole batch.
                self._seen.add(digest, embedding.copy())
            self.encoded += len(new)
        for item, loaded in taken:
            yield item, loaded if isinstance(loaded, Unusable) else known[loaded.digest]
