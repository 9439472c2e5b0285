"""An encoder's graph computed by OpenVINO, on CPUs: in float32, or in int8 after static quantisation.

Weights are quantised per channel; the range of each activation is measured once, on photos, and is then a constant of the
graph. So an image's embedding does not depend on the rest of its batch.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.encoders.graph import require_packages

_GRAPH = "graph.xml"


class OpenVinoNetwork:
    """Computes embeddings by a graph that `save_graph` wrote. Thread-safe.

    Attributes:
        device: always the CPU.
    """

    device = torch.device("cpu")

    def __init__(self, folder: Path) -> None:
        require_packages(["openvino"], "openvino", "this backend")
        import openvino

        core = openvino.Core()
        options = {
            # Otherwise, a processor that has bfloat16 would compute in it.
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_HYPER_THREADING": True,
        }
        self._request = core.compile_model(core.read_model(folder / _GRAPH), "CPU", options).create_infer_request()
        self._lock = Lock()

    def __call__(self, prepared: NDArray[Any]) -> NDArray[np.float32]:
        # One batch takes all threads.
        with self._lock:
            features: NDArray[np.float32] = self._request.infer([prepared])[0]
        return features


def save_graph(onnx: Path, folder: Path) -> None:
    """Write an ONNX graph to a folder, in OpenVINO's format.

    Raises:
        LensError: OpenVINO is not installed.
    """
    require_packages(["openvino"], "openvino", "this backend")
    import openvino

    openvino.save_model(openvino.Core().read_model(onnx), folder / _GRAPH, compress_to_fp16=False)


def save_quantised_graph(onnx: Path, photos: NDArray[np.uint8], folder: Path) -> None:
    """Write an ONNX graph to a folder, quantised to int8.

    Args:
        onnx: takes images (n, 3, h, w) uint8.
        photos: prepared ones (m, 3, h, w), to measure activations on.
        folder: receives the graph.

    Raises:
        LensError: OpenVINO or its quantisation, NNCF, is not installed.
    """
    require_packages(["openvino", "nncf"], "openvino", "this backend")
    # It would send usage data to its maker, but for where it is tested.
    os.environ.setdefault("NNCF_CI", "1")
    import nncf
    import openvino
    from nncf.quantization import range_estimator

    logging.getLogger("nncf").setLevel(logging.WARNING)
    graph = openvino.Core().read_model(onnx)
    quantised = nncf.quantize(
        graph,
        nncf.Dataset([photos[n : n + 1] for n in range(len(photos))]),
        # Its scheme for attention, with activations smoothed before they are quantised; convolutions lose least by it, too.
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            # Of all photos: a mean of their ranges cuts off what is rare, and loses neighbours.
            activations_range_estimator_params=range_estimator.RangeEstimatorParametersSet.MINMAX
        ),
        ignored_scope=nncf.IgnoredScope(names=_first_and_last(graph)),
        subset_size=len(photos),
    )
    openvino.save_model(quantised, folder / _GRAPH, compress_to_fp16=False)


def _first_and_last(graph: Any) -> list[str]:
    """The layers that see pixels and make features: a small share of the work, and of what int8 loses, the most."""
    layers = [node for node in graph.get_ordered_ops() if node.get_type_name() in ("Convolution", "MatMul")]
    first = [node for node in layers if node.get_type_name() == "Convolution"][:1]
    return list(dict.fromkeys(node.get_friendly_name() for node in (*first, *layers[-1:])))
