"""An encoder on the best backend for this host: chosen on the first batch, once per process, and cached on the host."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from pydantic import ValidationError

from listing_lens.embedding.embedder import require_encoder
from models.encoders.calibration import LEAST_IMAGES, Calibration, calibrate, host_of
from models.encoders.encoder import Encoder
from models.encoders.runtime import Backend, Runtime
from models.errors import LensError

logger = logging.getLogger(__name__)


class CalibratedEncoder:
    """Encodes with the backend that a calibration chose. Thread-safe.

    Attributes:
        reference: the encoder in float32.
        calibration: how the backend was chosen; None before the first batch, and if there was nothing to choose from.
    """

    def __init__(self, reference: Encoder, backends: tuple[Backend, ...], batch_size: int, folder: Path) -> None:
        self.reference = reference
        self.calibration: Calibration | None = None
        self._backends = backends
        self._batch_size = batch_size
        self._folder = folder
        self._lock = Lock()
        fixed = reference.network is None or backends == (Backend.FLOAT32,)
        self._chosen: Encoder | None = reference if fixed else None

    def encode(self, prepared: NDArray[Any]) -> NDArray[np.float32]:
        """Prepared images (n, …), n from 1 to the batch size: (n, dims) float32, each row of unit length.

        On a GPU and with compiled backends, every batch has the same size: a short one is padded.

        Raises:
            LensError: no backend can be used.
        """
        return self.encode_by(prepared)[0]

    def encode_by(self, prepared: NDArray[Any]) -> tuple[NDArray[np.float32], Backend]:
        """As `encode`, with the backend that computed the embeddings."""
        encoder = self._encoder_for(prepared)
        embeddings = encoder.encode(self._filled(prepared) if self._of_one_size else prepared)[: len(prepared)]
        chosen = encoder is not self.reference and self.calibration is not None
        return embeddings, self.calibration.chosen if chosen and self.calibration else Backend.FLOAT32

    @property
    def _of_one_size(self) -> bool:
        return self.reference.device.type == "cuda" or any(backend.compiled for backend in self._backends)

    def _filled(self, prepared: NDArray[Any]) -> NDArray[Any]:
        """A full batch, padded by repeating these images."""
        return np.resize(prepared, (self._batch_size, *prepared.shape[1:]))

    def _encoder_for(self, prepared: NDArray[Any]) -> Encoder:
        if self._chosen is not None:
            return self._chosen
        if len(prepared) < LEAST_IMAGES and Backend.FLOAT32 in self._backends:
            # Too few to calibrate on, and quickly done anyway.
            return self.reference
        with self._lock:
            if self._chosen is None:
                with self._alone_on_the_host():
                    chosen, self.calibration = self._choose(prepared)
                self._chosen = chosen
            return self._chosen

    def _choose(self, prepared: NDArray[Any]) -> tuple[Encoder, Calibration]:
        # Time backends at their real batch size; on a CPU, a few images suffice, as the time per image is the same.
        images = self._filled(prepared) if self._of_one_size else prepared[:LEAST_IMAGES]
        remembered = self._remembered()
        if remembered is not None:
            try:
                # Libraries may have changed since: check that the backend is still accurate enough.
                chosen, _ = calibrate(self.reference, (remembered.chosen,), images, time.perf_counter)
                return chosen, remembered
            except LensError as err:
                logger.warning("encoder %s: %s; choosing anew", self.reference.encoder_id, err)
        chosen, calibration = calibrate(self.reference, self._backends, images, time.perf_counter)
        logger.info("encoder %s computes in %s here: %s", chosen.encoder_id, calibration.chosen, calibration.trials)
        self._remember(calibration)
        return chosen, calibration

    @contextmanager
    def _alone_on_the_host(self) -> Iterator[None]:
        """Keep other processes from calibrating at the same time, which would skew the timings: they reuse the result."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self._path.with_suffix(".lock"))
            lock.acquire()
        except OSError:
            # Nothing can be cached here; `_remember` logs it.
            yield
            return
        try:
            yield
        finally:
            lock.release()

    @property
    def _path(self) -> Path:
        """Where this host caches its choice for this encoder and these backends."""
        asked = (self.reference.encoder_id, host_of(self.reference.device), str(self._batch_size), *self._backends)
        return self._folder / f"{hashlib.sha256('|'.join(asked).encode()).hexdigest()[:16]}.json"

    def _remembered(self) -> Calibration | None:
        try:
            return Calibration.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as err:
            logger.warning("calibration %s cannot be read (%s): choosing anew", self._path, err)
            return None

    def _remember(self, calibration: Calibration) -> None:
        part = self._path.with_suffix(f".{secrets.token_hex(4)}.part")
        try:
            part.write_text(calibration.model_dump_json(indent=2))
            os.replace(part, self._path)
        except OSError as err:
            # The next process calibrates again: nothing else is lost.
            logger.warning("calibration %s cannot be kept: %s", self._path, err)


_make_lock = Lock()


@cache
def _make_once(source: str, encoder_id: str, runtime: Runtime, batch_size: int, folder: Path) -> CalibratedEncoder:
    return CalibratedEncoder(require_encoder(source, encoder_id, runtime), runtime.backends, batch_size, folder)


def calibrated_encoder(
    source: str, encoder_id: str, runtime: Runtime, batch_size: int, folder: Path
) -> CalibratedEncoder:
    """The calibrated encoder of a source, one per process, shared by all threads; `folder` caches the host's choice.

    Raises:
        LensError: the encoder cannot be loaded, or the source now points to a different one.
    """
    with _make_lock:
        return _make_once(source, encoder_id, runtime, batch_size, folder)
