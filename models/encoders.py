"""Encoders: an image becomes its embedding, by a model of a hub or a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModel
from transformers.utils import logging as transformers_logging

from models.encoder_files import encoder_folder, encoder_id, lasting_source
from models.errors import LensError

# A job's log is no place for bars, nor for remarks on the text tower's special tokens, which images never meet.
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()

_load_lock = Lock()


@dataclass(frozen=True)
class Encoder:
    """A model in evaluation mode with its own preprocessing.

    Attributes:
        source: the hub id (with @revision) or absolute folder that it came from.
        encoder_id: its name and a hash of its weights and preprocessing; the same content has the same id anywhere.
        dims: length of an embedding.
        image_side: side in pixels that images are scaled to.
    """

    source: str
    encoder_id: str
    dims: int
    image_side: int
    _model: torch.nn.Module
    _processor: object

    @classmethod
    def load(cls, source: str) -> Encoder:
        """Load from a folder or, when there is none of that name, from the model hub.

        Raises:
            LensError: the model is unknown, out of reach, of another kind, or ships its weights as pickles only.
        """
        folder = encoder_folder(source)
        try:
            # float32 wherever it runs, whatever the weights are saved as.
            model, loading = AutoModel.from_pretrained(
                folder, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
            )
            # The PIL backend wherever it runs: torchvision's resampling gives slightly different pixels.
            processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as err:
            raise LensError(f"encoder {source!r} cannot be loaded: {str(err).splitlines()[0]}") from err
        if not hasattr(model, "get_image_features"):
            raise LensError(f"encoder {source!r} is a {model.config.model_type} model, which has no image features")
        if missing := sorted(loading["missing_keys"]):
            # Transformers would fill them with random numbers.
            raise LensError(f"encoder {source!r} lacks weights, such as {missing[0]}: save it with save_pretrained()")
        side = _side(processor)
        if not side:
            raise LensError(f"encoder {source!r} scales images to no fixed size: choose a model that does")
        encoder = cls(lasting_source(source), encoder_id(source, folder), 0, side, model.eval(), processor)
        return replace(encoder, dims=encoder.embed([Image.new("RGB", (side, side))]).shape[1])

    def embed(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Embed RGB images: (n, dims) float32, each row of unit length."""
        if not images:
            return np.empty((0, self.dims), np.float32)
        pixels = self._processor(images=list(images), return_tensors="pt")["pixel_values"]  # type: ignore[operator]
        with torch.inference_mode():
            features = _image_features(self._model, pixels).float()
            return torch.nn.functional.normalize(features, dim=1).numpy()


def _image_features(model: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """The pooled image embedding, (n, dims)."""
    output = model.get_image_features(pixel_values=pixels)  # type: ignore[operator]
    features: torch.Tensor = getattr(output, "pooler_output", output)
    return features


def _side(processor: Any) -> int | None:
    size = getattr(processor, "size", None) or {}
    # SigLIP's scale to a square, CLIP's the shorter side.
    return size.get("height") or size.get("shortest_edge")


@cache
def _load_once(source: str) -> Encoder:
    return Encoder.load(source)


def shared_encoder(source: str) -> Encoder:
    """The process's one copy of an encoder, whichever thread asks."""
    with _load_lock:
        return _load_once(source)
