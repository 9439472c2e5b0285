"""What an encoder costs: parameters, operations per image, and time per image on this host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count, cycle, islice
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from models.encoders.encoder import Encoder

# Images per forward pass, as long as more of them take less time each.
BATCHES = (8, 32, 128)
# Each batch is timed this often at least; beyond that for as long as that many seconds, but no more often than that.
_LEAST_ROUNDS, _SECONDS, _MOST_ROUNDS = 3, 2.0, 100


class Timing(BaseModel):
    """Milliseconds per image, from a decoded photo to its embedding: the median and the 99th percentile of all rounds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch: int = Field(gt=0)
    rounds: int = Field(gt=0)
    p50_ms: float
    p99_ms: float


class Cost(BaseModel):
    """Of an image tower; the plain baseline has no parameters and no network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: int = Field(ge=0)
    # Of one image; a multiplication and an addition are two operations.
    gflop: float = Field(ge=0)
    device: str
    single: Timing
    # In the batch that takes the least time per image.
    batched: Timing


def measure_cost(
    encoder: Encoder, images: Sequence[Image.Image], clock: Callable[[], float], batches: Sequence[int] = BATCHES
) -> Cost:
    """Measure an encoder in float32 on its device.

    Args:
        encoder: to be measured.
        images: RGB, at least one; they are taken in turn, since photos differ in size.
        clock: seconds.
        batches: numbers of images per forward pass to try, from the smallest.
    """
    single = batched = _timing(encoder, images, 1, clock)
    for size in batches:
        larger = _timing(encoder, images, size, clock)
        if larger.p50_ms >= batched.p50_ms:
            break
        batched = larger
    return Cost(
        parameters=_parameters(encoder),
        gflop=_flop(encoder, images[0]) / 1e9,
        device=encoder.device.type,
        single=single,
        batched=batched,
    )


def _parameters(encoder: Encoder) -> int:
    from models.encoders.network import Network

    network = encoder.network
    return sum(weights.numel() for weights in network.tower.parameters()) if isinstance(network, Network) else 0


def _flop(encoder: Encoder, image: Image.Image) -> int:
    # What only reads a cost needs no torch.
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        encoder.embed([image])
    return int(counter.get_total_flops())


def _timing(encoder: Encoder, images: Sequence[Image.Image], size: int, clock: Callable[[], float]) -> Timing:
    turns = cycle(images)
    # The first pass of a shape allocates, and may compile.
    encoder.embed(list(islice(turns, size)))
    seconds: list[float] = []
    begin = clock()
    for number in count():
        if number >= _MOST_ROUNDS or (number >= _LEAST_ROUNDS and clock() - begin >= _SECONDS):
            break
        batch = list(islice(turns, size))
        start = clock()
        encoder.embed(batch)
        seconds.append(clock() - start)
    p50, p99 = 1000 * np.percentile(seconds, (50, 99)) / size
    return Timing(batch=size, rounds=len(seconds), p50_ms=float(p50), p99_ms=float(p99))
