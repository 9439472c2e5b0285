"""An encoder's network as an ONNX graph, which other engines than torch read."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from models.encoders.encoder import Encoder
from models.encoders.network import Network
from models.errors import LensError

OPSET = 20
_PROBES = 8


class EncoderGraph(nn.Module):
    """What is exported: `Encoder.encode`, from prepared images (n, 3, h, w) uint8 to embeddings (n, dims) of unit length."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, encoder: Encoder, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        network = encoder.network
        assert isinstance(network, Network)
        self.tower = copy.deepcopy(network.tower).to(dtype)
        self.dtype = dtype
        self.register_buffer("scale", network.scale)
        self.register_buffer("shift", network.shift)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features = self.tower((pixels.float() * self.scale + self.shift).to(self.dtype)).float()
        unit: torch.Tensor = features / torch.linalg.vector_norm(features, dim=1, keepdim=True).clamp_min(1e-12)
        return unit


def probe_images(encoder: Encoder) -> NDArray[np.uint8]:
    """Prepared images (n, 3, h, w) to try a network out with: coloured patches, the same ones always.

    Raises:
        LensError: the encoder has no network, or prepares images in a way of its own.
    """
    if encoder.network is None:
        raise LensError(f"encoder {encoder.source!r} has no network that could be exported: leave it as it is")
    chance = np.random.default_rng(0)
    patches = chance.integers(0, 256, (_PROBES, 6, 8, 3), dtype=np.uint8)
    images = [Image.fromarray(each).resize((320, 240), Image.Resampling.BICUBIC) for each in patches]
    prepared = np.stack([encoder.prepare(image) for image in images])
    if prepared.dtype != np.uint8 or prepared.ndim != 4:
        raise LensError(
            f"encoder {encoder.source!r} prepares images as {prepared.dtype} of shape {prepared.shape[1:]}, and only bytes of "
            "three channels can be exported: leave it to torch"
        )
    return prepared


def require_packages(packages: Sequence[str], extra: str, need: str) -> None:
    """Raise LensError, with the extra to install, if one of these packages is not installed."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise LensError(f"{missing[0]} is not installed, and {need} needs it: install listing-lens[{extra}]")


def export_graph(graph: nn.Module, pixels: NDArray[np.uint8], source: str, file: Path) -> None:
    """Write a module as ONNX, its weights beside it to `<file>.data`: one input, `pixels`, of any number of images.

    Args:
        graph: on the CPU.
        pixels: some images to trace it with (n, 3, h, w), two or more.
        source: names the encoder in errors.
        file: in a folder that exists.

    Raises:
        LensError: the module cannot be traced.
    """
    with _quiet():
        try:
            program = torch.onnx.export(
                graph.eval(),
                (torch.from_numpy(pixels),),
                dynamo=True,
                dynamic_shapes={"pixels": {0: torch.export.Dim("n")}},
                opset_version=OPSET,
                verbose=False,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError, TypeError) as err:
            first = (str(err) or repr(err)).splitlines()[0]
            raise LensError(f"encoder {source!r} cannot be exported to ONNX: {first}") from err
        assert program is not None
        program.save(file, external_data=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that nothing here needs."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
