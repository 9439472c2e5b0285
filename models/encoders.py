"""Encoders: an image becomes its embedding, by a model of a hub or a folder, or by a plain baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModel
from transformers.utils import logging as transformers_logging

import models.conv_siglip  # noqa: F401  the demo's model, registered with transformers
from models.encoder_files import encoder_folder, encoder_id, identify, lasting_source, thumbnail_side
from models.errors import LensError

# A job's log is no place for bars, nor for remarks on the text tower's special tokens, which images never meet.
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()

_load_lock = Lock()

# Models for images alone whose pooled output is their embedding: MobileNetV2's mean over its last feature map, DINOv2's
# class token. Models for images and texts offer `get_image_features`. A pooled output of others may be anything.
_POOLED = {"mobilenet_v2", "dinov2", "dinov2_with_registers"}
_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_LEAST_LENGTH = np.float32(1e-12)


@dataclass(frozen=True)
class Encoder:
    """A model in evaluation mode with its own preprocessing, or the plain baseline of thumbnails.

    Attributes:
        source: the hub id (with @revision), absolute folder or gs:// address that it came from; or pixels:N.
        encoder_id: its name and a hash of its weights and preprocessing; the same content has the same id anywhere.
        dims: length of an embedding.
        image_side: side in pixels that images are scaled to: the shorter one where a square is cut out afterwards.
    """

    source: str
    encoder_id: str
    dims: int
    image_side: int
    _features: Callable[[Sequence[Image.Image]], NDArray[np.float32]]

    @classmethod
    def load(cls, source: str) -> Encoder:
        """Load from a folder, from Cloud Storage or, when there is neither of that name, from the model hub.

        Raises:
            LensError: the model is unknown, out of reach, of another kind, or ships its weights as pickles only.
        """
        if thumbnails := thumbnail_side(source):
            features: Callable[..., NDArray[np.float32]] = partial(_thumbnails, side=thumbnails)
            return cls(source, identify(source), 3 * thumbnails**2, thumbnails, features)
        folder = encoder_folder(source)
        try:
            # float32 wherever it runs, whatever the weights are saved as.
            model, loading = AutoModel.from_pretrained(
                folder, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
            )
            # The PIL backend wherever it runs: torchvision's resampling gives slightly different pixels.
            processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
        except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as err:
            raise LensError(f"encoder {source!r} cannot be loaded: {str(err).splitlines()[0]}") from err
        forward = _image_tower(model)
        if forward is None:
            raise LensError(f"encoder {source!r} is a {model.config.model_type} model, which has no image features")
        if missing := sorted(loading["missing_keys"]):
            # Transformers would fill them with random numbers.
            raise LensError(f"encoder {source!r} lacks weights, such as {missing[0]}: save it with save_pretrained()")
        side = _side(processor)
        if not side:
            raise LensError(f"encoder {source!r} scales images to no fixed size: choose a model that does")
        model.eval().to(_DEVICE)
        features = partial(_pooled_output, forward, processor)
        encoder = cls(lasting_source(source), encoder_id(source, folder), 0, side, features)
        return replace(encoder, dims=encoder.embed([Image.new("RGB", (side, side))]).shape[1])

    def embed(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Embed RGB images: (n, dims) float32, each row of unit length."""
        if not images:
            return np.empty((0, self.dims), np.float32)
        features = self._features(images)
        lengths = np.linalg.norm(features, axis=1, keepdims=True).astype(np.float32)
        unit: NDArray[np.float32] = features / np.maximum(lengths, _LEAST_LENGTH)
        return unit


def _image_tower(model: Any) -> Callable[..., Any] | None:
    """What takes pixels to the model's image embedding; None when nothing does."""
    if hasattr(model, "get_image_features"):
        return model.get_image_features  # type: ignore[no-any-return]
    return model if model.config.model_type in _POOLED else None


def _pooled_output(forward: Callable[..., Any], processor: Any, images: Sequence[Image.Image]) -> NDArray[np.float32]:
    pixels = processor(images=list(images), return_tensors="pt")["pixel_values"].to(_DEVICE)
    with torch.inference_mode():
        output = forward(pixel_values=pixels)
        features: torch.Tensor = getattr(output, "pooler_output", output)
        return features.float().cpu().numpy()


def _thumbnails(images: Sequence[Image.Image], *, side: int) -> NDArray[np.float32]:
    """Pixels of side × side thumbnails without their image's mean: (n, 3 side²) float32."""
    small = [image.resize((side, side), Image.Resampling.BOX) for image in images]
    pixels = np.stack([np.asarray(image, np.float32).ravel() for image in small])
    pixels -= pixels.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    # An image of one grey has nothing left: it gets the direction that is orthogonal to all others.
    pixels[~pixels.any(axis=1)] = 1
    return pixels


def _side(processor: Any) -> int | None:
    size = getattr(processor, "size", None) or {}
    # SigLIP's scale to a square; CLIP's, MobileNetV2's and DINOv2's the shorter side, of which a square is cut out.
    return size.get("height") or size.get("shortest_edge")


@cache
def _load_once(source: str) -> Encoder:
    return Encoder.load(source)


def shared_encoder(source: str) -> Encoder:
    """The process's one copy of an encoder, whichever thread asks."""
    with _load_lock:
        return _load_once(source)
