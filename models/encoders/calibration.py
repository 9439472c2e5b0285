"""Choosing an encoder's backend on a host: all try the same images, and the fastest one that is accurate enough wins."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from models.encoders.encoder import Encoder
from models.encoders.runtime import Backend
from models.errors import LensError

# Images to calibrate on: enough for a batch, few enough that a CPU finishes in seconds.
LEAST_IMAGES = 8
_ROUNDS = 3
# A smaller speed-up is not worth the loss of precision.
_WORTH_IT = 1.1


class Trial(BaseModel):
    """One backend on one host: its speed, how close its worst embedding stays to float32's, or why it cannot run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Backend
    images_per_s: float | None = None
    least_cosine: float | None = None
    refusal: str | None = None

    @property
    def accepted(self) -> bool:
        return self.least_cosine is not None and self.least_cosine >= self.backend.least_cosine


class Calibration(BaseModel):
    """What was chosen for an encoder on a host, and from what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder_id: str
    host: str
    images: int
    chosen: Backend
    trials: tuple[Trial, ...]


def host_of(device: torch.device) -> str:
    """What decides the speed of a backend: the processor or GPU, its threads, and torch's version."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def calibrate(
    encoder: Encoder, backends: Sequence[Backend], prepared: NDArray[Any], clock: Callable[[], float]
) -> tuple[Encoder, Calibration]:
    """The encoder on the fastest of some backends, of those whose every embedding is close enough to float32's.

    Backends take turns, so that a change in the host's speed affects all of them. If float32 is among them, another backend
    must be at least 10% faster.

    Args:
        encoder: in float32, the reference.
        backends: at least one; those that cannot run here are recorded as such.
        prepared: images as `encoder.prepare` gives them, of one batch.
        clock: seconds.

    Raises:
        LensError: none of the backends runs here and stays close enough.
    """
    reference = encoder.encode(prepared)
    candidates: dict[Backend, Encoder] = {}
    trials: dict[Backend, Trial] = {}
    for backend in dict.fromkeys(backends):
        try:
            candidate = encoder if backend is Backend.FLOAT32 else encoder.on(backend)
            # A compiler may fail as late as this. Whatever it raises, only this backend is ruled out.
            cosines = np.einsum("nd,nd->n", candidate.encode(prepared), reference)
        except Exception as err:  # noqa: BLE001
            trials[backend] = Trial(backend=backend, refusal=(str(err) or repr(err)).splitlines()[0][:200])
            continue
        trials[backend] = Trial(backend=backend, least_cosine=float(cosines.min()))
        if trials[backend].accepted:
            candidates[backend] = candidate
    if not candidates:
        raise LensError(
            f"encoder {encoder.source!r}: none of LENS_ENCODER_BACKENDS can be used on this host "
            f"({'; '.join(map(_finding, trials.values()))}): add float32"
        )
    seconds: dict[Backend, list[float]] = {backend: [] for backend in candidates}
    for _ in range(_ROUNDS):
        for backend, candidate in candidates.items():
            start = clock()
            candidate.encode(prepared)
            seconds[backend].append(clock() - start)
    speeds = {backend: len(prepared) / statistics.median(taken) for backend, taken in seconds.items()}
    fastest = max(speeds, key=lambda backend: speeds[backend])
    if Backend.FLOAT32 in speeds and speeds[fastest] < _WORTH_IT * speeds[Backend.FLOAT32]:
        fastest = Backend.FLOAT32
    calibration = Calibration(
        encoder_id=encoder.encoder_id,
        host=host_of(encoder.device),
        images=len(prepared),
        chosen=fastest,
        trials=tuple(trial.model_copy(update={"images_per_s": speeds.get(trial.backend)}) for trial in trials.values()),
    )
    return candidates[fastest], calibration


def _finding(trial: Trial) -> str:
    if trial.refusal:
        return f"{trial.backend}: {trial.refusal}"
    return f"{trial.backend}: a cosine of {trial.least_cosine:.4f}, less than {trial.backend.least_cosine}"


def _processor() -> str:
    """The processor's model, where the system tells; platform.processor() is empty on most Linux systems."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return model or platform.processor() or platform.machine()
