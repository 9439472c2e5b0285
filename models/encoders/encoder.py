"""Encoders: an image becomes its embedding, by a model of a hub or a folder, or by a plain baseline.

Preparing an image (scaling, cutting) and encoding a batch are two steps, so that threads can prepare ahead of the model.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from torch import nn
from transformers import CONFIG_MAPPING, AutoImageProcessor, AutoModel
from transformers.utils import logging as transformers_logging

import models.encoders.conv_siglip  # noqa: F401  the demo's model, registered with transformers
from models.encoders.devices import claim_device
from models.encoders.files import (
    borrows_code,
    encoder_folder,
    encoder_id,
    identify,
    is_pinned,
    lasting_source,
    ships_code,
    thumbnail_side,
)
from models.encoders.runtime import DEFAULT_RUNTIME, Backend, Runtime
from models.errors import LensError

# A job's log is no place for bars, nor for remarks on the text tower's special tokens, which images never meet.
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()

_load_lock = Lock()
_CPU = torch.device("cpu")

# Models for images alone whose pooled output is their embedding: MobileNetV2's mean over its last feature map, DINOv2's
# class token. Models for images and texts offer `get_image_features`. A pooled output of others may be anything.
_POOLED = {"mobilenet_v2", "dinov2", "dinov2_with_registers"}
_LEAST_LENGTH = np.float32(1e-12)
# How far bytes that are scaled by us may lie from what the model's own preprocessing gives, in its normalised units.
_SAME_PIXELS = 1e-5


@dataclass(frozen=True)
class Encoder:
    """A model in evaluation mode with its own preprocessing, or the plain baseline of thumbnails.

    Attributes:
        source: the hub id (with @revision), absolute folder or gs:// address that it came from; or pixels:N.
        encoder_id: its name and a hash of its weights and preprocessing; the same content has the same id anywhere.
        dims: length of an embedding.
        image_side: side in pixels that images are scaled to: the shorter one where a square is cut out afterwards.
        prepare: takes an RGB image to the array that the model takes one of, mostly (3, h, w) uint8; threads may call it.
        network: takes a batch of them to features (n, dims) float32.
    """

    source: str
    encoder_id: str
    dims: int
    image_side: int
    prepare: Callable[[Image.Image], NDArray[Any]]
    network: Network | None = None

    @classmethod
    def load(cls, source: str, device: torch.device = _CPU, trusted_code: Sequence[str] = ()) -> Encoder:
        """Load from a folder, from Cloud Storage or, when there is neither of that name, from the model hub.

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
            return cls(source, identify(source), 3 * thumbnails**2, thumbnails, partial(_thumbnail, side=thumbnails))
        folder = encoder_folder(source)
        if device.type == "cuda":
            # Convolutions too: the reference has float32's digits on every device.
            torch.backends.cudnn.allow_tf32 = False
        try:
            own_code = _may_run_its_code(source, folder, trusted_code)
            # float32 wherever it runs, whatever the weights are saved as.
            model, loading = AutoModel.from_pretrained(
                folder, use_safetensors=True, trust_remote_code=own_code, dtype=torch.float32, output_loading_info=True
            )
            # The PIL backend wherever it runs: torchvision's resampling gives slightly different pixels.
            processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=own_code)
        except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as err:
            raise LensError(f"encoder {source!r} cannot be loaded: {str(err).splitlines()[0]}") from err
        if not _has_image_features(model):
            raise LensError(f"encoder {source!r} is a {model.config.model_type} model, which has no image features")
        if missing := sorted(loading["missing_keys"]):
            # Transformers would fill them with random numbers.
            raise LensError(f"encoder {source!r} lacks weights, such as {missing[0]}: save it with save_pretrained()")
        side = _side(processor)
        if not side:
            raise LensError(f"encoder {source!r} scales images to no fixed size: choose a model that does")
        prepare, scale, shift = _preparation(processor)
        network = Network.of(ImageTower(model), device, scale, shift)
        encoder = cls(lasting_source(source), encoder_id(source, folder), 0, side, prepare, network)
        return replace(encoder, dims=encoder.embed([Image.new("RGB", (side, side))]).shape[1])

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

    def on(self, backend: Backend) -> Encoder:
        """The same encoder, computed by another backend from a copy of the weights.

        Raises:
            LensError: the backend cannot run here.
        """
        if self.network is None:
            raise LensError(f"encoder {self.source!r} has no network that {backend} could compute")
        try:
            return replace(self, network=self.network.on(backend))
        except (RuntimeError, NotImplementedError, ImportError, AttributeError) as err:
            raise LensError(f"backend {backend} cannot run here: {(str(err) or repr(err)).splitlines()[0]}") from err


class ImageTower(nn.Module):
    """What takes normalised pixels to a model's image embedding; a text tower beside it is dropped."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.eval()
        self._of_both = hasattr(model, "get_image_features")
        for text in ("text_model", "text_projection"):
            if self._of_both and hasattr(model, text):
                # Half of the memory or more, in every worker, and images never meet it.
                delattr(model, text)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        output = (
            self.model.get_image_features(pixel_values=pixels) if self._of_both else self.model(pixel_values=pixels)
        )
        features: torch.Tensor = getattr(output, "pooler_output", output)
        return features


@dataclass(frozen=True)
class Network:
    """A tower on a device, and the affine map from prepared images to what it takes: pixels * scale + shift."""

    tower: nn.Module
    device: torch.device
    dtype: torch.dtype
    scale: torch.Tensor
    shift: torch.Tensor

    @classmethod
    def of(
        cls, tower: nn.Module, device: torch.device, scale: NDArray[np.float32], shift: NDArray[np.float32]
    ) -> Network:
        """In float32, on a device; scale and shift are (3, 1, 1)."""
        constants = (torch.from_numpy(each).to(device) for each in (scale, shift))
        return cls(tower.to(device), device, torch.float32, *constants)

    @torch.inference_mode()
    def __call__(self, prepared: NDArray[Any]) -> NDArray[np.float32]:
        pixels = torch.from_numpy(prepared).to(self.device).float() * self.scale + self.shift
        features: NDArray[np.float32] = self.tower(pixels.to(self.dtype)).float().cpu().numpy()
        return features

    def on(self, backend: Backend) -> Network:
        """A copy in another backend."""
        tower: Any = copy.deepcopy(self.tower)
        dtype = torch.bfloat16 if backend in (Backend.BFLOAT16, Backend.COMPILED_BFLOAT16) else torch.float32
        if backend is Backend.INT8:
            if self.device.type != "cpu":
                raise NotImplementedError("int8 runs on CPUs only")
            tower = torch.ao.quantization.quantize_dynamic(tower, {nn.Linear}, dtype=torch.qint8, inplace=True)
        tower = tower.to(dtype) if dtype != torch.float32 else tower
        if backend.compiled:
            # One shape for all batches, which the caller sees to.
            tower = torch.compile(tower, dynamic=False)
        return replace(self, tower=tower, dtype=dtype)


def _has_image_features(model: Any) -> bool:
    return hasattr(model, "get_image_features") or model.config.model_type in _POOLED


def _may_run_its_code(source: str, folder: Path, trusted: Sequence[str]) -> bool:
    """Whether a model is loaded by code that it ships. Raises LensError when it would need to, and may not."""
    if not ships_code(folder) or json.loads((folder / "config.json").read_bytes()).get("model_type") in CONFIG_MAPPING:
        return False
    if not is_pinned(source):
        raise LensError(
            f"encoder {source!r} ships code of its own, which could be anything tomorrow: name it by its hub id and pin "
            "the commit that you have read, as in id@0123…, all 40 digits"
        )
    if borrows_code(folder):
        raise LensError(
            f"encoder {source!r} is loaded by code of another model, which its commit does not pin: save a copy with the code "
            "in its own files"
        )
    if source not in trusted:
        raise LensError(
            f"encoder {source!r} ships code of its own: if you trust it, add it to LENS_ENCODER_TRUSTED_CODE"
        )
    return True


def _preparation(
    processor: Any,
) -> tuple[Callable[[Image.Image], NDArray[Any]], NDArray[np.float32], NDArray[np.float32]]:
    """How one image is prepared, and the affine map (scale, shift), each (3, 1, 1), that the network begins with.

    Scaling and cutting are the processor's own and leave bytes; the rest of its work is the affine map. A processor that
    does anything else besides prepares images wholly.
    """
    fast = partial(_processed, processor, do_rescale=False, do_normalize=False)
    chance = np.random.default_rng(0)
    probe = Image.fromarray(chance.integers(0, 256, (97, 131, 3), dtype=np.uint8))
    wanted = _processed(processor, probe)
    try:
        rescale = processor.rescale_factor if processor.do_rescale else 1.0
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
        scale, shift = (
            np.broadcast_to(np.asarray(each, np.float32).reshape(-1, 1, 1), (3, 1, 1)).copy()
            for each in (rescale / np.asarray(std), -np.asarray(mean) / np.asarray(std))
        )
        pixels = fast(probe)
        if pixels.dtype == np.uint8 and np.abs(pixels * scale + shift - wanted).max() < _SAME_PIXELS:
            return fast, scale, shift
    except (AttributeError, TypeError, ValueError):
        # A processor of another make, without these switches.
        pass
    return partial(_processed, processor), np.ones((3, 1, 1), np.float32), np.zeros((3, 1, 1), np.float32)


def _processed(processor: Any, image: Image.Image, **switches: bool) -> NDArray[Any]:
    pixels: NDArray[Any] = np.asarray(processor(images=image, return_tensors="np", **switches)["pixel_values"])[0]
    return pixels


def _thumbnail(image: Image.Image, *, side: int) -> NDArray[np.float32]:
    """Pixels of a side × side thumbnail without their mean: (3 side²,) float32."""
    pixels = np.asarray(image.resize((side, side), Image.Resampling.BOX), np.float32).ravel()
    pixels = pixels - pixels.mean(dtype=np.float64).astype(np.float32)
    # An image of one grey has nothing left: it gets the direction that is orthogonal to all others.
    return pixels if pixels.any() else np.ones_like(pixels)


def _side(processor: Any) -> int | None:
    size = getattr(processor, "size", None) or {}
    # SigLIP's scale to a square; CLIP's, MobileNetV2's and DINOv2's the shorter side, of which a square is cut out.
    return size.get("height") or size.get("shortest_edge")


@cache
def _load_once(source: str, device: torch.device, trusted_code: tuple[str, ...]) -> Encoder:
    return Encoder.load(source, device, trusted_code)


def shared_encoder(source: str, runtime: Runtime = DEFAULT_RUNTIME) -> Encoder:
    """The process's one copy of an encoder on its device, whichever thread asks."""
    with _load_lock:
        return _load_once(source, claim_device(runtime.device), runtime.trusted_code)
