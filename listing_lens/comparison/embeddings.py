"""Photos embedded by several encoders; each photo is read once, and embedded once by each encoder, whenever it comes back."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from models.encoders.encoder import Encoder
from models.images import ImageError, ImageLimits, decode_image

# Photos that are in memory at a time, and the most embeddings that a kill can lose.
_CHUNK = 256

Vectors = dict[str, NDArray[np.float32]]


class EmbeddingCache:
    """Embeddings by encoder and by the content of the photo, in files of a folder.

    Several processes may use it at once: a file appears whole, and is never changed. It may be removed at any time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, encoder_id: str) -> Vectors:
        """All embeddings (d,) of an encoder, by the digest of the photo. A file that is not whole counts as absent."""
        found: Vectors = {}
        for path in sorted((self._folder / encoder_id).glob("*.safetensors")):
            try:
                tensors = load(path.read_bytes())
            except (SafetensorError, FileNotFoundError):
                continue
            found |= zip((row.tobytes().hex() for row in tensors["photos"]), tensors["embeddings"], strict=True)
        return found

    def add(self, encoder_id: str, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """Keep embeddings of an encoder, by digest."""
        if not vectors:
            return
        folder = self._folder / encoder_id
        folder.mkdir(parents=True, exist_ok=True)
        photos = np.array([list(bytes.fromhex(digest)) for digest in vectors], np.uint8)
        name = hashlib.sha256(photos.tobytes()).hexdigest()[:16]
        with NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as part:
            part.write(save({"photos": photos, "embeddings": np.stack(list(vectors.values()))}))
        os.replace(part.name, folder / f"{name}.safetensors")


def embed_photos(
    photos: Iterable[tuple[str, bytes]],
    encoders: Sequence[Encoder],
    limits: ImageLimits,
    cache: EmbeddingCache | None,
    *,
    batch_size: int,
    advance: Callable[[int], None],
) -> list[Vectors]:
    """Embeddings (d,) by name, for each encoder, of (name, encoded image). Photos that cannot be decoded are absent.

    Args:
        photos: read a few at a time.
        encoders: embed those photos that the cache lacks.
        limits: what a photo may cost.
        cache: None keeps nothing.
        batch_size: photos per forward pass.
        advance: told how many more photos are done.
    """
    known = [cache.load(encoder.encoder_id) if cache else {} for encoder in encoders]
    found: list[Vectors] = [{} for _ in encoders]
    remaining = iter(photos)
    while chunk := list(islice(remaining, _CHUNK)):
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in chunk}
        for encoder, cached, vectors in zip(encoders, known, found, strict=True):
            missing = {digests[name]: data for name, data in chunk if digests[name] not in cached}
            new = dict(_embedded(missing, encoder, limits, batch_size))
            if cache:
                cache.add(encoder.encoder_id, new)
            cached |= new
            vectors |= {name: cached[digest] for name, digest in digests.items() if digest in cached}
        advance(len(chunk))
    return found


def _embedded(
    photos: Mapping[str, bytes], encoder: Encoder, limits: ImageLimits, batch_size: int
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    remaining = iter(photos.items())
    while batch := list(islice(remaining, batch_size)):
        images = {}
        for digest, data in batch:
            try:
                images[digest] = decode_image(data, limits, min_side=encoder.image_side)
            except ImageError:
                # Whoever asked sees that it is absent: a session with such a photo is left out, and counted.
                continue
        yield from zip(images, encoder.embed(list(images.values())), strict=True)
