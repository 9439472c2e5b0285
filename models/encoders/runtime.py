"""How encoders may run: the backends that can compute a space, and where a process computes. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Device = Literal["auto", "cpu", "cuda"]


class Backend(StrEnum):
    """What computes an encoder's image tower, and in which numbers."""

    # torch. float32 is the reference: it runs anywhere, and queries are always computed in it.
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    # OpenVINO, on CPUs only. int8 is quantised once, with photos of the catalog.
    OPENVINO = "openvino-float32"
    OPENVINO_INT8 = "openvino-int8"

    @property
    def exact(self) -> bool:
        """Whether it computes in float32, if not in torch: its embeddings are the reference's up to rounding."""
        return self in (Backend.FLOAT32, Backend.OPENVINO)


class Precision(StrEnum):
    """The number format of an exported model's weights."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"

    @property
    def least_cosine(self) -> float:
        """How close each vector must be to float32's for the export to be used."""
        return {Precision.FLOAT32: 0.9999, Precision.FLOAT16: 0.999}[self]


@dataclass(frozen=True)
class Runtime:
    """Where and how encoders may run.

    Attributes:
        device: "cuda" is one GPU per process; "auto" is the same if there is a GPU, else the CPU.
        trusted_code: hub ids with a pinned revision (id@commit) whose own code may run.
    """

    device: Device = "auto"
    trusted_code: tuple[str, ...] = ()


DEFAULT_RUNTIME = Runtime()
