"""An embedder as one ONNX graph, for servers of models: prepared images in, vectors out, each with the name of its space.

The graph computes all that follows an image's preparation: the affine map of its pixels, the image tower, the projection.
The weights lie in a file beside it, since a graph may not be larger than 2 GB.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.embedder import EMBEDDING, PIXELS, SPACE
from models.encoders.encoder import Encoder
from models.encoders.graph import EncoderGraph, export_graph, probe_images, require_packages
from models.encoders.runtime import Precision
from models.errors import LensError
from models.projection import Projection

# Read by the ONNX Runtimes of the last years, as the operators of `models.encoders.graph` are.
_IR_VERSION = 10
_NEEDED = ("onnx", "onnxruntime", "onnxscript")
_TYPES = {Precision.FLOAT32: torch.float32, Precision.FLOAT16: torch.float16}


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
    require_packages(_NEEDED, "export", "an export")
    pixels = probe_images(encoder)
    export_graph(_Graph(encoder, projection, _TYPES[precision]), pixels, encoder.source, file)
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

    components: torch.Tensor
    bias: torch.Tensor
    first_axis: torch.Tensor

    def __init__(self, encoder: Encoder, projection: Projection, dtype: torch.dtype) -> None:
        super().__init__()
        self.encode = EncoderGraph(encoder, dtype)
        self.register_buffer("components", torch.from_numpy(projection.components))
        self.register_buffer("bias", torch.from_numpy(projection.bias))
        # The direction that an embedding equal to the mean is given.
        self.register_buffer("first_axis", torch.eye(1, projection.dims))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        vectors = self.encode(pixels) @ self.components + self.bias
        largest = vectors.abs().amax(dim=1, keepdim=True)
        # Very short ones would lose their length in single precision.
        vectors = torch.where(largest > 0, vectors / largest.clamp_min(1e-38), self.first_axis)
        unit: torch.Tensor = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        return unit


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
