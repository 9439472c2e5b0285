"""Encoders: they turn an image into its embedding, by a model from a hub or a folder, or by a plain baseline.

Preparing an image (scaling, cutting) and encoding a batch are two steps, so that threads can prepare ahead of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoModel
from transformers.utils import logging as transformers_logging

from models.encoders.devices import claim_device
from models.encoders.files import encoder_folder, encoder_id, identify, lasting_source, require_id, thumbnail_side
from models.encoders.network import Features, ImageTower, Network
from models.encoders.own_code import may_run_own_code, register_architecture
from models.encoders.preparation import Preparation, thumbnail
from models.encoders.runtime import DEFAULT_RUNTIME, Runtime
from models.errors import LensError

# Keep progress bars out of job logs, and remarks on the text tower's special tokens, which images never use.
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()

_load_lock = Lock()
_CPU = torch.device("cpu")

# Image-only models whose pooled output is their embedding: MobileNetV2's mean over its last feature map, DINOv2's
# class token. Models for images and texts offer `get_image_features`. The pooled output of others may be anything.
_POOLED = {"mobilenet_v2", "dinov2", "dinov2_with_registers"}
_LEAST_LENGTH = np.float32(1e-12)


@dataclass(frozen=True)
class Encoder:
    """A model in evaluation mode with its own preprocessing, or the plain baseline of thumbnails.

    Attributes:
        source: the hub id (with @revision), absolute folder or gs:// address that it came from; or pixels:N.
        encoder_id: its name and a hash of its weights and preprocessing; the same content has the same id anywhere.
        dims: length of an embedding.
        image_side: side in pixels that images are scaled to: the shorter one where a square is cut out afterwards.
        prepare: turns an RGB image into the model's input, mostly (3, h, w) uint8; threads may call it.
        network: turns a batch of inputs into features (n, dims) float32.
    """

    source: str
    encoder_id: str
    dims: int
    image_side: int
    prepare: Callable[[Image.Image], NDArray[Any]]
    network: Features | None = None

    @classmethod
    def load(cls, source: str, device: torch.device = _CPU, trusted_code: Sequence[str] = ()) -> Encoder:
        """Load from a folder, from Cloud Storage or, if neither exists by that name, from the model hub.

        It computes in float32, the reference for every other backend.

        Args:
            source: names it.
            device: where it computes.
            trusted_code: hub ids with a pinned revision (id@commit) whose own code may run.

        Raises:
            LensError: the model is unknown, out of reach, of another kind, ships its weights as pickles only, or ships
                code of its own that may not run.
        """
        if thumbnails := thumbnail_side(source):
            return cls(source, identify(source), 3 * thumbnails**2, thumbnails, partial(thumbnail, side=thumbnails))
        folder = encoder_folder(source)
        if device.type == "cuda":
            # No TF32 in convolutions either: the reference has full float32 precision on every device.
            torch.backends.cudnn.allow_tf32 = False
        register_architecture(folder)
        try:
            own_code = may_run_own_code(source, folder, trusted_code)
            # Always float32, whatever type the weights are saved in.
            model, loading = AutoModel.from_pretrained(
                folder, use_safetensors=True, trust_remote_code=own_code, dtype=torch.float32, output_loading_info=True
            )
        except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as err:
            raise LensError(f"encoder {source!r} cannot be loaded: {str(err).splitlines()[0]}") from err
        if not _has_image_features(model):
            raise LensError(f"encoder {source!r} is a {model.config.model_type} model, which has no image features")
        if missing := sorted(loading["missing_keys"]):
            # Transformers would fill them with random numbers.
            raise LensError(f"encoder {source!r} lacks weights, such as {missing[0]}: save it with save_pretrained()")
        images = Preparation.load(source, folder, own_code)
        network = Network.of(ImageTower(model), device, images.scale, images.shift)
        encoder = cls(lasting_source(source), encoder_id(source, folder), 0, images.side, images.prepare, network)
        return replace(encoder, dims=encoder.embed([Image.new("RGB", (images.side, images.side))]).shape[1])

    @property
    def device(self) -> torch.device:
        return self.network.device if self.network else _CPU

    def embed(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Embed RGB images: (n, dims) float32, each row of unit length."""
        if not images:
            return np.empty((0, self.dims), np.float32)
        return self.encode(np.stack([self.prepare(image) for image in images]))

    def encode(self, prepared: NDArray[Any]) -> NDArray[np.float32]:
        """Embed prepared images (n, …), n at least 1: (n, dims) float32, each row of unit length."""
        features = self.network(prepared) if self.network else prepared
        lengths = np.linalg.norm(features, axis=1, keepdims=True).astype(np.float32)
        unit: NDArray[np.float32] = features / np.maximum(lengths, _LEAST_LENGTH)
        return unit


def load_preparation(source: str, wanted_id: str, trusted_code: Sequence[str] = ()) -> Preparation:
    """How an encoder's images are prepared, without loading its weights.

    Args:
        source: names the encoder.
        wanted_id: the id that it must have.
        trusted_code: hub ids with a pinned revision (id@commit) whose own code may run.

    Raises:
        LensError: the source is out of reach, is another encoder by now, or has no preparation that can be loaded.
    """
    if thumbnail_side(source):
        raise LensError(f"encoder {source!r} has no network, so only this process can compute it")
    folder = encoder_folder(source)
    require_id(source, encoder_id(source, folder), wanted_id)
    register_architecture(folder)
    return Preparation.load(source, folder, may_run_own_code(source, folder, trusted_code))


def _has_image_features(model: Any) -> bool:
    return hasattr(model, "get_image_features") or model.config.model_type in _POOLED


# A process that runs for months meets one encoder after the other, and needs the newest: two while the catalog moves.
@lru_cache(maxsize=3)
def _load_once(source: str, device: torch.device, trusted_code: tuple[str, ...]) -> Encoder:
    return Encoder.load(source, device, trusted_code)


def shared_encoder(source: str, runtime: Runtime = DEFAULT_RUNTIME) -> Encoder:
    """The process's one copy of an encoder on its device, shared by all threads; of the encoders that it used last."""
    with _load_lock:
        return _load_once(source, claim_device(runtime.device), runtime.trusted_code)
