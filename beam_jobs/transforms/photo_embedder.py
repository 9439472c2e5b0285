"""From photos to embeddings: fetched, decoded and preprocessed in threads ahead of the model, encoded in full batches."""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from beam_jobs.transforms.image_loader import ImageLoader, Unusable, loading_threads
from listing_lens.images.source import ImageSource
from listing_lens.lake.embeddings import Embedded
from models.encoders.encoder import Encoder

Item = TypeVar("Item")
# Preprocessed images (n, …) → embeddings (n, dims), and the name of the backend that computed them.
Encode = Callable[[NDArray[Any]], tuple[NDArray[np.float32], str]]

# Batches of photos prefetched ahead of the model, so that it never waits for a single slow photo.
_BATCHES_AHEAD = 3
# Size limit of the cache of embeddings by photo.
_SEEN_BYTES = 128 * 2**20
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A photo, identified by the hash of its bytes: preprocessed for the model, or already embedded."""

    digest: bytes
    prepared: NDArray[Any] | None
    embedded: Embedded | None


class SeenPhotos:
    """An LRU cache of embeddings by the hash of their photo's bytes. Thread-safe."""

    def __init__(self, dims: int, max_bytes: int = _SEEN_BYTES) -> None:
        self._most = max(1, max_bytes // (4 * dims))
        self._embedded: OrderedDict[bytes, Embedded] = OrderedDict()
        self._lock = Lock()

    def get(self, digest: bytes) -> Embedded | None:
        with self._lock:
            if digest in self._embedded:
                self._embedded.move_to_end(digest)
            return self._embedded.get(digest)

    def add(self, embedded: Embedded) -> None:
        with self._lock:
            self._embedded[embedded.photo] = embedded
            if len(self._embedded) > self._most:
                self._embedded.popitem(last=False)


_seen_lock = Lock()


@lru_cache(maxsize=1)
def _seen_once(run: str, dims: int) -> SeenPhotos:
    return SeenPhotos(dims)


def seen_in(run: str, dims: int) -> SeenPhotos:
    """The cache of a run, one per process, shared by all threads."""
    with _seen_lock:
        return _seen_once(run, dims)


class PhotoEmbedder(Generic[Item]):
    """Embeds the photos of items in the order in which they are added; identical bytes are encoded once.

    Results arrive a few batches after their items; `flush` returns the last ones.

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

    def add(self, item: Item, uri: str, known: Embedded | None = None) -> Iterator[tuple[Item, Embedded | Unusable]]:
        """Add an item; yields the results of earlier ones, a batch at a time.

        Args:
            item: the item.
            uri: the address of its photo.
            known: the embedding of the item's previous photo; it is the result if the bytes are unchanged.
        """
        self._ahead.append((item, loading_threads().submit(self._load, uri, known)))
        while len(self._ahead) >= _BATCHES_AHEAD * self._batch_size:
            yield from self._next_batch()

    def flush(self) -> Iterator[tuple[Item, Embedded | Unusable]]:
        """The remaining results."""
        while self._ahead:
            yield from self._next_batch()

    def clear(self) -> None:
        """Discard the items that have no result yet."""
        for _, loading in self._ahead:
            loading.cancel()
        self._ahead.clear()

    def _load(self, uri: str, known: Embedded | None) -> _Loaded | Unusable:
        data = self._loader.fetch(uri)
        if isinstance(data, Unusable):
            return data
        digest = hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()
        embedded = known if known is not None and known.photo == digest else self._seen.get(digest)
        if embedded is not None:
            return _Loaded(digest, None, embedded)
        image = self._loader.decode(data)
        return image if isinstance(image, Unusable) else _Loaded(digest, self._encoder.prepare(image), None)

    def _next_batch(self) -> Iterator[tuple[Item, Embedded | Unusable]]:
        """The results of as many items as it takes to fill a batch with new photos."""
        taken: list[tuple[Item, _Loaded | Unusable]] = []
        new: dict[bytes, NDArray[Any]] = {}
        results: dict[bytes, Embedded | Unusable] = {}
        while self._ahead and len(new) < self._batch_size:
            item, loading = self._ahead.popleft()
            loaded = loading.result()
            taken.append((item, loaded))
            if isinstance(loaded, Unusable) or loaded.embedded or loaded.digest in new or loaded.digest in results:
                continue
            # The photo may have been encoded since it was loaded.
            seen = self._seen.get(loaded.digest)
            if seen is not None:
                results[loaded.digest] = seen
            else:
                assert loaded.prepared is not None
                new[loaded.digest] = loaded.prepared
        if new:
            results |= self._encoded(new)
            self.encoded += len(new)
        for item, loaded in taken:
            yield item, loaded if isinstance(loaded, Unusable) else loaded.embedded or results[loaded.digest]

    def _encoded(self, prepared: Mapping[bytes, NDArray[Any]]) -> Iterator[tuple[bytes, Embedded | Unusable]]:
        embeddings, backend = self._encode(np.stack(list(prepared.values())))
        for digest, embedding in zip(prepared, embeddings, strict=True):
            if not np.isfinite(embedding).all():
                yield digest, Unusable("encode", f"the encoder's numbers are not finite, computed in {backend}")
                continue
            # A copy: a view would keep the whole batch alive.
            embedded = Embedded(embedding.copy(), digest, str(backend))
            self._seen.add(embedded)
            yield digest, embedded
