"""An encoder on the backend that is pinned for its space; in float32 on a host that cannot run it, and without a pin."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from listing_lens.embedding.embedder import require_encoder
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.pins import Pin, Pins
from models.encoders.backends import open_backend
from models.encoders.calibration import host_of
from models.encoders.encoder import Encoder
from models.encoders.runtime import Backend, Runtime
from models.errors import LensError

logger = logging.getLogger(__name__)


class Host(BaseModel):
    """What a host computed in, and why not in the backend that is pinned, if it did not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    backend: Backend
    refusal: str | None = None


class PinnedEncoder:
    """Encodes in one backend. Thread-safe.

    Attributes:
        reference: the encoder in float32.
        host: what it computes in here.
    """

    def __init__(self, reference: Encoder, embeddings: Embeddings, batch_size: int, pin: Pin | None, cache: Path):
        self.reference = reference
        self._batch_size = batch_size
        self._encoder, self.host = _opened(reference, embeddings, pin, cache)

    def encode_by(self, prepared: NDArray[Any]) -> tuple[NDArray[np.float32], Backend]:
        """Embed, and say in which backend.

        On a GPU, every batch has the same size, since another size is computed in another way: a short one is padded.

        Args:
            prepared: images (n, …), n from 1 to the batch size.

        Returns:
            (n, dims) float32, each row of unit length, and the backend.
        """
        images = prepared
        if self._encoder.device.type == "cuda":
            images = np.resize(prepared, (self._batch_size, *prepared.shape[1:]))
        return self._encoder.encode(images)[: len(prepared)], self.host.backend


def _opened(reference: Encoder, embeddings: Embeddings, pin: Pin | None, cache: Path) -> tuple[Encoder, Host]:
    host = host_of(reference.device)
    if pin is None or pin.files is None:
        return reference, Host(host=host, backend=Backend.FLOAT32)
    try:
        folder = embeddings.lake.on_this_machine(Pins(embeddings).files_of(pin.files), cache)
        return open_backend(reference, pin.backend, folder), Host(host=host, backend=pin.backend)
    except (LensError, OSError) as err:
        refusal = (str(err) or repr(err)).splitlines()[0]
        logger.warning("%s is computed in float32 here, and not in %s: %s", reference.encoder_id, pin.backend, refusal)
        return reference, Host(host=host, backend=Backend.FLOAT32, refusal=refusal)


_make_lock = Lock()


@cache
def _make_once(
    source: str, embeddings: Embeddings, runtime: Runtime, batch_size: int, pin: str | None, cache: Path
) -> PinnedEncoder:
    reference = require_encoder(source, embeddings.encoder_id, runtime)
    return PinnedEncoder(reference, embeddings, batch_size, Pin.model_validate_json(pin) if pin else None, cache)


def pinned_encoder(
    source: str, embeddings: Embeddings, runtime: Runtime, batch_size: int, pin: Pin | None, cache: Path
) -> PinnedEncoder:
    """The pinned encoder of a source, one per process, shared by all threads.

    Args:
        source, runtime: what it is loaded from, and where it runs.
        embeddings: names the encoder and its place in the lake.
        batch_size: images that are computed together, at most.
        pin: the backend of the space; None is float32.
        cache: a local folder for what the backend computes by.

    Raises:
        LensError: the encoder cannot be loaded, or the source now points to a different one.
    """
    with _make_lock:
        text = pin.model_dump_json() if pin else None
        return _make_once(source, embeddings, runtime, batch_size, text, cache)
