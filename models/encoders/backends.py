"""Backends other than float32 in torch: what each needs is made once, kept in a folder, and opened on every host.

The folder also holds the embeddings of a few probe images. A host whose own differ from them computes something else, whatever
the reason, and must not use the backend.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from models.encoders.encoder import Encoder
from models.encoders.graph import EncoderGraph, export_graph, probe_images, require_packages
from models.encoders.network import Features, Network
from models.encoders.openvino_graph import OpenVinoNetwork, save_graph, save_quantised_graph
from models.encoders.runtime import Backend
from models.errors import LensError

_PROBES = "probes.safetensors"
_VECTORS = "embeddings"
# How close the embedding of each probe must be to the one that was kept: bfloat16 rounds differently on other processors.
_SAME_COMPUTATION = 0.999


def save_backend(encoder: Encoder, backend: Backend, photos: NDArray[np.uint8], folder: Path) -> None:
    """Write to a folder what a backend computes an encoder by.

    Args:
        encoder: in float32.
        backend: any but float32.
        photos: prepared ones (m, …), to quantise by.
        folder: exists, and is empty.

    Raises:
        LensError: the encoder has no network or cannot be exported, the backend's libraries are not installed, or it cannot
            run here.
    """
    probes = probe_images(encoder)
    if backend in (Backend.OPENVINO, Backend.OPENVINO_INT8):
        _require_cpu(encoder, backend)
        require_packages(["openvino", "onnx", "onnxscript"], "openvino", f"backend {backend}")
        with TemporaryDirectory() as scratch:
            onnx = Path(scratch, "graph.onnx")
            export_graph(EncoderGraph(encoder), probes, encoder.source, onnx)
            if backend is Backend.OPENVINO:
                save_graph(onnx, folder)
            else:
                save_quantised_graph(onnx, photos, folder)
    save_file({_VECTORS: _computed_by(encoder, backend, folder).encode(probes)}, folder / _PROBES)


def open_backend(encoder: Encoder, backend: Backend, folder: Path) -> Encoder:
    """The same encoder, computed by a backend from what `save_backend` wrote.

    Args:
        encoder: in float32, of the same weights.
        backend: any but float32.
        folder: holds what the backend needs.

    Raises:
        LensError: the backend cannot run here, or computes something else than where it was made.
    """
    found = _computed_by(encoder, backend, folder)
    try:
        kept = load_file(folder / _PROBES)[_VECTORS]
    except (OSError, KeyError, SafetensorError) as err:
        raise LensError(f"backend {backend}: {folder / _PROBES} cannot be read: {err}") from err
    closeness = float(np.vecdot(found.encode(probe_images(encoder)), kept).min())
    if not closeness >= _SAME_COMPUTATION:
        raise LensError(
            f"backend {backend} computes something else here than where it was made: a probe's embedding has a cosine of "
            f"{closeness:.5f} with the one there"
        )
    return found


def _computed_by(encoder: Encoder, backend: Backend, folder: Path) -> Encoder:
    try:
        return replace(encoder, network=_network(encoder, backend, folder))
    except (RuntimeError, NotImplementedError, ImportError, OSError) as err:
        raise LensError(f"backend {backend} cannot run here: {(str(err) or repr(err)).splitlines()[0]}") from err


def _network(encoder: Encoder, backend: Backend, folder: Path) -> Features:
    if backend is Backend.BFLOAT16:
        assert isinstance(encoder.network, Network)
        return encoder.network.in_bfloat16()
    _require_cpu(encoder, backend)
    return OpenVinoNetwork(folder)


def _require_cpu(encoder: Encoder, backend: Backend) -> None:
    if encoder.device.type != "cpu":
        raise LensError(f"backend {backend} runs on CPUs only, and this process has a GPU")
