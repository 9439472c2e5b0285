"""Choosing the backend of a space: all compute the same photos, and the fastest wins that finds float32's neighbours.

Searches compare vectors of more than one computation: queries are float32's, and a host that lacks the chosen backend embeds in
float32 as well. So recall is measured for every such mixture, and the lowest counts.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.encoders.backends import open_backend, save_backend
from models.encoders.encoder import Encoder
from models.encoders.runtime import Backend
from models.encoders.trials import Calibration, Recall, Trial
from models.errors import LensError
from models.projection_quality import nearest, neighbour_recall, scores

# Photos that recall is measured on, and others that int8's activations are.
COMPARED = 1000
QUANTISED_ON = 200
LEAST_IMAGES = QUANTISED_ON + COMPARED
# A smaller speed-up is not worth another computation.
_WORTH_IT = 1.1
_NEIGHBOURS = 10
# Batches after which a backend that is slower than float32 is given up.
_FIRST_BATCHES = 5


def host_of(device: torch.device) -> str:
    """What decides the speed of a backend: the processor or GPU, its threads, and torch's version."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def calibrate(
    encoder: Encoder,
    backends: Sequence[Backend],
    images: NDArray[Any],
    batch_size: int,
    folder: Path,
    clock: Callable[[], float],
    advance: Callable[[int], None] = lambda _: None,
) -> Calibration:
    """Choose the fastest of some backends, of those that find 99% of float32's neighbours and are at least 10% faster than it.

    Backends take turns at each batch, so that a change in the host's speed affects all of them.

    Args:
        encoder: in float32, the reference.
        backends: those to choose from, besides float32; those that cannot run here are recorded as such.
        images: prepared, as `encoder.prepare` gives them, no two alike: (LEAST_IMAGES or more, …).
        batch_size: images that are computed together.
        folder: receives a folder by the name of each backend, with what it needs to be opened.
        clock: seconds.
        advance: told how many more images are done.

    Raises:
        LensError: there are too few images.
    """
    if len(images) < LEAST_IMAGES:
        raise LensError(
            f"a backend is chosen by {LEAST_IMAGES} photos, and there are {len(images)}: land more listings first"
        )
    quantised_on, compared = images[:QUANTISED_ON], images[QUANTISED_ON:]
    candidates = {Backend.FLOAT32: encoder}
    refusals: dict[Backend, str] = {}
    for backend in dict.fromkeys(backends):
        if backend is Backend.FLOAT32:
            continue
        try:
            place = folder / backend
            place.mkdir(parents=True)
            save_backend(encoder, backend, quantised_on, place)
            candidates[backend] = open_backend(encoder, backend, place)
        # Whatever a library raises, only its backend is ruled out.
        except Exception as err:  # noqa: BLE001
            refusals[backend] = (str(err) or repr(err)).splitlines()[0][:200]
    vectors, speeds = _in_turns(candidates, compared, batch_size, clock, advance)
    slow = {backend: vectors.pop(backend) for backend in speeds if len(vectors[backend]) < len(compared)}
    reference = vectors[Backend.FLOAT32]
    trials = [
        Trial(
            backend=backend,
            images_per_s=speeds[backend],
            recall=recall_of(found, reference),
            least_cosine=float(np.vecdot(found, reference).min()),
        )
        for backend, found in vectors.items()
    ]
    trials += [
        Trial(backend=backend, images_per_s=speeds[backend], refusal="is slower than float32") for backend in slow
    ]
    trials += [Trial(backend=backend, refusal=refusal) for backend, refusal in refusals.items()]
    return Calibration(
        encoder_id=encoder.encoder_id,
        host=host_of(encoder.device),
        images=len(compared),
        chosen=_fastest(trials),
        trials=tuple(trials),
    )


def recall_of(vectors: NDArray[np.float32], reference: NDArray[np.float32]) -> Recall:
    """Of a backend's vectors (n, dims) against float32's of the same images (n, dims); n at least 11."""
    everyone = np.arange(len(reference))
    exact = scores(reference, everyone, nearest(reference, everyone, _NEIGHBOURS))
    every_other = np.where(everyone[:, None] % 2, vectors, reference)

    def share(asking: NDArray[np.float32], asked: NDArray[np.float32]) -> float:
        found = scores(reference, everyone, nearest(asked, everyone, _NEIGHBOURS, asking))
        return float(neighbour_recall(found, exact, _NEIGHBOURS).mean())

    return Recall(own=share(vectors, vectors), queried=share(reference, vectors), mixed=share(reference, every_other))


def _in_turns(
    candidates: Mapping[Backend, Encoder],
    images: NDArray[Any],
    batch_size: int,
    clock: Callable[[], float],
    advance: Callable[[int], None],
) -> tuple[dict[Backend, NDArray[np.float32]], dict[Backend, float]]:
    """The embeddings of the images by each candidate, and its images per second in a batch of median speed.

    One that is slower than float32 after some batches is left out of the others.
    """
    found: dict[Backend, list[NDArray[np.float32]]] = {backend: [] for backend in candidates}
    seconds: dict[Backend, list[float]] = {backend: [] for backend in candidates}
    running = dict(candidates)
    for candidate in candidates.values():
        # Memory is laid out for a size when it is met first.
        candidate.encode(images[:batch_size])
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        for backend, candidate in running.items():
            began = clock()
            found[backend].append(candidate.encode(batch))
            seconds[backend].append((clock() - began) / len(batch))
        if start == (_FIRST_BATCHES - 1) * batch_size:
            longest = statistics.median(seconds[Backend.FLOAT32])
            running = {name: one for name, one in running.items() if statistics.median(seconds[name]) <= longest}
        advance(len(batch))
    return (
        {backend: np.concatenate(parts) for backend, parts in found.items()},
        {backend: 1 / statistics.median(taken) for backend, taken in seconds.items()},
    )


def _fastest(trials: Sequence[Trial]) -> Backend:
    speeds = {trial.backend: trial.images_per_s or 0.0 for trial in trials if trial.accepted}
    fastest = max(speeds, key=lambda backend: speeds[backend])
    return fastest if speeds[fastest] >= _WORTH_IT * speeds[Backend.FLOAT32] else Backend.FLOAT32


def _processor() -> str:
    """The processor's model, where the system tells; platform.processor() is empty on most Linux systems."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return model or platform.processor() or platform.machine()
