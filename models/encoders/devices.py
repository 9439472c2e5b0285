"""Which device a process computes on: the CPU, or a GPU of its own."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from models.encoders.runtime import Device
from models.errors import LensError

logger = logging.getLogger(__name__)


def claim_device(wanted: Device) -> torch.device:
    """The device of this process, the same on every call.

    Processes that share a machine's GPUs, such as the workers of one job, each get one to themselves. It is
    released when the process ends, however it ends. "auto" is the CPU when there is no GPU left.

    Raises:
        LensError: a GPU was asked for and there is none, or all are taken.
    """
    gpus = torch.cuda.device_count() if wanted != "cpu" else 0
    if wanted == "cuda" and not gpus:
        raise LensError("LENS_ENCODER_DEVICE is cuda, but torch sees no GPU: install its driver, or set auto or cpu")
    if not gpus:
        return torch.device("cpu")
    number = _own_gpu()
    if number is not None:
        return torch.device("cuda", number)
    if wanted == "auto":
        logger.warning("all %d GPUs that this process sees have one of their own already: using the CPU", gpus)
        return torch.device("cpu")
    raise LensError(
        f"all {gpus} GPUs that this process sees have one of their own already: run as many workers as there are GPUs"
    )


@cache
def _own_gpu() -> int | None:
    """The index, among the GPUs that this process sees, of the one that it has claimed for good."""
    # Indexes differ between processes that see different GPUs.
    names = [str(torch.cuda.get_device_properties(n).uuid) for n in range(torch.cuda.device_count())]
    return claim_one(names, Path(tempfile.gettempdir(), f"listing-lens-gpus-{os.getuid()}"))


# Locks of this process, held until it ends.
_held: list[FileLock] = []


def claim_one(names: Sequence[str], folder: Path) -> int | None:
    """Claim the first free name in a folder for as long as this process lives. Returns its index; None if all are taken."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for number, name in enumerate(names):
        lock = FileLock(folder / f"{name}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        _held.append(lock)
        return number
    return None
