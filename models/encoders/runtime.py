"""How encoders may run on a host, according to the settings. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Device = Literal["auto", "cpu", "cuda"]


class Backend(StrEnum):
    """A way to run a model: its number format, and whether it is compiled for the host first."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    # 8-bit weights, activations quantised dynamically: linear layers only, and on CPUs only.
    INT8 = "int8"
    # By torch.compile, which takes a minute per process and a C++ compiler: worth it for large windows.
    COMPILED = "compiled"
    COMPILED_BFLOAT16 = "compiled-bfloat16"

    @property
    def compiled(self) -> bool:
        return self in (Backend.COMPILED, Backend.COMPILED_BFLOAT16)

    @property
    def least_cosine(self) -> float:
        """How close each embedding must be to float32's for the backend to be used."""
        return _LEAST_COSINE[self]


_LEAST_COSINE = {
    Backend.FLOAT32: 0.99999,
    Backend.BFLOAT16: 0.999,
    Backend.INT8: 0.995,
    Backend.COMPILED: 0.99999,
    Backend.COMPILED_BFLOAT16: 0.999,
}


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
        backends: what calibration may choose from when a catalog is embedded; queries are always computed in float32.
        trusted_code: hub ids with a pinned revision (id@commit) whose own code may run.
    """

    device: Device = "auto"
    backends: tuple[Backend, ...] = (Backend.FLOAT32,)
    trusted_code: tuple[str, ...] = ()


DEFAULT_RUNTIME = Runtime()
