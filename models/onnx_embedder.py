"""An embedder as one ONNX graph, for servers of models: prepared images in, vectors out, each with the name of its space.

The graph computes all that follows an image's preparation: the affine map of its pixels, the image tower, the projection.
The weights lie in a file beside it, since a graph may not be larger than 2 GB.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from models.embedder import EMBEDDING, PIXELS, SPACE
from models.encoders.encoder import Encoder
from models.encoders.runtime import Precision
from models.errors import LensError
from models.projection import Projection

# Both are read by the ONNX Runtimes of the last years.
_OPSET = 20
_IR_VERSION = 10
_NEEDED = ("onnx", "onnxruntime", "onnxscript")
_TYPES = {Precision.FLOAT32: torch.float32, Precision.FLOAT16: torch.float16}
_PROBES = 8


def export_onnx(
    encoder: Encoder, projection: Projection, space: str, file: Path, precision: Precision = Precision.FLOAT32
) -> float:
    """Write an embedder's graph to a file, its weights beside it to `<file>.data`, and try it out with ONNX Runtime.

    Input and output are the same for all precisions: `PIXELS`, `EMBEDDING` and `SPACE` of `models.embedder`.

    Args:
        encoder: on the CPU, in float32.
        projection: of its embeddings.
        space: the name that goes out with every vector.
        file: in a folder that exists.
        precision: of the tower's weights; the projection is computed in float32.

    Returns:
        The least cosine, over the probe images, with the vectors that the embedder computes itself.

    Raises:
        LensError: the encoder has no network, prepares images in a way of its own, or cannot be traced; the graph computes
            something else; or ONNX is not installed.
    """
    _require_onnx()
    pixels = _probes(encoder)
    _export(_Graph(encoder, projection, _TYPES[precision]).eval(), pixels, encoder.source, file)
    _finish(file, space, pixels.shape[1:])
    least = _least_cosine(file, pixels, projection.apply(encoder.encode(pixels)), space)
    # Not-a-number is not close.
    if not least >= precision.least_cosine:
        remedy = "compute it in the service" if precision is Precision.FLOAT32 else "export it in float32"
        raise LensError(
            f"encoder {encoder.source!r} exported in {precision} has vectors with a cosine of only {least:.5f} with its own, "
            f"less than {precision.least_cosine}: {remedy}"
        )
    return least


class _Graph(nn.Module):
    """What is exported: `Encoder.encode` and `Projection.apply`, one after the other."""

    scale: torch.Tensor
    shift: torch.Tensor
    components: torch.Tensor
    bias: torch.Tensor
    first_axis: torch.Tensor

    def __init__(self, encoder: Encoder, projection: Projection, dtype: torch.dtype) -> None:
        super().__init__()
        network = encoder.network
        assert network is not None
        self.tower = copy.deepcopy(network.tower).to(dtype)
        self.dtype = dtype
        self.register_buffer("scale", network.scale)
        self.register_buffer("shift", network.shift)
        self.register_buffer("components", torch.from_numpy(projection.components))
        self.register_buffer("bias", torch.from_numpy(projection.bias))
        # The direction that an embedding equal to the mean is given.
        self.register_buffer("first_axis", torch.eye(1, projection.dims))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features = self.tower((pixels.float() * self.scale + self.shift).to(self.dtype)).float()
        embeddings = features / torch.linalg.vector_norm(features, dim=1, keepdim=True).clamp_min(1e-12)
        vectors = embeddings @ self.components + self.bias
        largest = vectors.abs().amax(dim=1, keepdim=True)
        # Very short ones would lose their length in single precision.
        vectors = torch.where(largest > 0, vectors / largest.clamp_min(1e-38), self.first_axis)
        unit: torch.Tensor = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        return unit


def _require_onnx() -> None:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise LensError(f"{missing[0]} is not installed, and an export needs it: install listing-lens[export]")


def _probes(encoder: Encoder) -> NDArray[np.uint8]:
    """Prepared images (n, 3, h, w): coloured patches, the same ones always."""
    if encoder.network is None:
        raise LensError(f"encoder {encoder.source!r} has no network that could be exported: compute it in the service")
    chance = np.random.default_rng(0)
    patches = chance.integers(0, 256, (_PROBES, 6, 8, 3), dtype=np.uint8)
    images = [Image.fromarray(each).resize((320, 240), Image.Resampling.BICUBIC) for each in patches]
    prepared = np.stack([encoder.prepare(image) for image in images])
    if prepared.dtype != np.uint8 or prepared.ndim != 4:
        raise LensError(
            f"encoder {encoder.source!r} prepares images as {prepared.dtype} of shape {prepared.shape[1:]}, and only bytes of "
            "three channels can be exported: compute it in the service"
        )
    return prepared


def _export(graph: _Graph, pixels: NDArray[np.uint8], source: str, file: Path) -> None:
    with _quiet():
        try:
            program = torch.onnx.export(
                graph,
                (torch.from_numpy(pixels),),
                dynamo=True,
                dynamic_shapes={"pixels": {0: torch.export.Dim("n")}},
                opset_version=_OPSET,
                verbose=False,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError, TypeError) as err:
            first = (str(err) or repr(err)).splitlines()[0]
            raise LensError(f"encoder {source!r} cannot be exported to ONNX: {first}") from err
        assert program is not None
        program.save(file, external_data=True)


def _finish(file: Path, space: str, shape: tuple[int, ...]) -> None:
    """Give the graph its names: of its input and outputs, and of the space.

    All dimensions stay open in the declaration, so that versions of one model may differ in them. A picture of the wrong size
    is refused by the first node.
    """
    import onnx
    from onnx import TensorProto, compose, helper

    model = onnx.load(file, load_external_data=False)
    for node in model.graph.node:
        # Where on the exporting machine its code lies.
        del node.metadata_props[:]
    # So that no name inside is one of those outside.
    model = compose.add_prefix(model, "embedder/")
    [pixels], [vectors] = model.graph.input, model.graph.output
    nodes = [
        helper.make_node("Reshape", [PIXELS, "shape"], [pixels.name], name="prepared images of one size"),
        *model.graph.node,
        helper.make_node("Identity", [vectors.name], [EMBEDDING]),
        helper.make_node("Shape", [PIXELS], ["n"], start=0, end=1),
        helper.make_node("Concat", ["n", "one"], ["n by one"], axis=0),
        helper.make_node("Expand", ["name", "n by one"], [SPACE]),
    ]
    constants = [
        # 0 takes over the number of images.
        helper.make_tensor("shape", TensorProto.INT64, [4], [0, *shape]),
        helper.make_tensor("one", TensorProto.INT64, [1], [1]),
        helper.make_tensor("name", TensorProto.STRING, [1, 1], [space.encode()]),
    ]
    named = helper.make_graph(
        nodes,
        "embedder",
        [helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, ["n", 3, "height", "width"])],
        [
            helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, ["n", "dims"]),
            helper.make_tensor_value_info(SPACE, TensorProto.STRING, ["n", 1]),
        ],
        [*model.graph.initializer, *constants],
    )
    finished = helper.make_model(named, opset_imports=model.opset_import, ir_version=_IR_VERSION)
    onnx.save(finished, file)
    onnx.checker.check_model(file)


def _least_cosine(file: Path, pixels: NDArray[np.uint8], wanted: NDArray[np.float32], space: str) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    cosines = []
    # Batches of one and of several: the number of images must not be fixed.
    for some in (slice(0, 1), slice(1, None)):
        vectors, spaces = session.run([EMBEDDING, SPACE], {PIXELS: pixels[some]})
        assert (np.asarray(spaces) == space).all()
        cosines.append(np.vecdot(vectors, wanted[some]))
    return float(np.concatenate(cosines).min())


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
