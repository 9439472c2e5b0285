"""An encoder on the backend that suits this host: chosen with the first batch, once a process, and remembered on the host."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import time
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from models.calibration import LEAST_IMAGES, Calibration, calibrate, host_of
from models.encoders import Encoder, shared_encoder
from models.runtime import Backend, Runtime

logger = logging.getLogger(__name__)


class CalibratedEncoder:
    """Encodes batches of one shape, by the backend that a calibration chose. Threads may share it.

    Attributes:
        reference: the encoder in float32.
        calibration: how the backend was chosen; None before the first batch, and when there was no choice.
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
        """Prepared images (n, …), n at least 1: (n, dims) float32, each row of unit length.

        Batches are filled up to a few sizes, so that a compiled backend meets one, and others few.

        Raises:
            LensError: no backend can be used.
        """
        encoder = self._encoder_for(prepared)
        count = len(prepared)
        full = min(self._batch_size, 1 << (count - 1).bit_length())
        if self.calibration and self.calibration.chosen.compiled:
            full = self._batch_size
        if count < full:
            prepared = np.concatenate([prepared, np.broadcast_to(prepared[:1], (full - count, *prepared.shape[1:]))])
        return encoder.encode(prepared)[:count]

    def _encoder_for(self, prepared: NDArray[Any]) -> Encoder:
        if self._chosen is not None:
            return self._chosen
        if len(prepared) < LEAST_IMAGES and Backend.FLOAT32 in self._backends:
            # Too few to choose by, and soon done.
            return self.reference
        with self._lock:
            if self._chosen is None:
                self._chosen, self.calibration = self._choose(prepared)
            return self._chosen

    def _choose(self, prepared: NDArray[Any]) -> tuple[Encoder, Calibration]:
        found = self._remembered()
        if found is not None:
            return self.reference if found.chosen is Backend.FLOAT32 else self.reference.on(found.chosen), found
        # A GPU is judged by the batch that it will have; on a CPU, few images take as long each.
        few = prepared if self.reference.device.type == "cuda" else prepared[:LEAST_IMAGES]
        chosen, calibration = calibrate(self.reference, self._backends, few, time.perf_counter)
        logger.info("encoder %s computes in %s here: %s", chosen.encoder_id, calibration.chosen, calibration.trials)
        self._remember(calibration)
        return chosen, calibration

    @property
    def _path(self) -> Path:
        """Where this host keeps what it chose for this encoder from these backends."""
        asked = "|".join((self.reference.encoder_id, host_of(self.reference.device), *self._backends))
        return self._folder / f"{hashlib.sha256(asked.encode()).hexdigest()[:16]}.json"

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
            self._folder.mkdir(parents=True, exist_ok=True)
            part.write_text(calibration.model_dump_json(indent=2))
            os.replace(part, self._path)
        except OSError as err:
            # The next process chooses again: nothing else is lost.
            logger.warning("calibration %s cannot be kept: %s", self._path, err)


_make_lock = Lock()


@cache
def _make_once(source: str, runtime: Runtime, batch_size: int, folder: Path) -> CalibratedEncoder:
    return CalibratedEncoder(shared_encoder(source, runtime), runtime.backends, batch_size, folder)


def calibrated_encoder(source: str, runtime: Runtime, batch_size: int, folder: Path) -> CalibratedEncoder:
    """The process's one calibrated encoder of a source, whichever thread asks; `folder` keeps what the host chose."""
    with _make_lock:
        return _make_once(source, runtime, batch_size, folder)
