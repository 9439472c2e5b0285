"""The two towers that are trained: a parent's image and text encoders, with its own preprocessing."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from torch import nn
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from models.encoders.own_code import register_architecture
from models.encoders.preparation import Preparation
from models.encoders.texts import Tokenize
from models.errors import LensError
from models.finetune.recipe import Recipe
from models.finetune.sigmoid_loss import INITIAL_LOG_SCALE, initial_bias

if TYPE_CHECKING:
    from peft import PeftModel

# Keep progress bars out of the training's log.
transformers_logging.disable_progress_bar()

# The layers of an image tower, and what comes before them: of a transformer, a residual network, and timm's EfficientNets.
_IMAGE_LAYER = re.compile(r"vision_model\.(?:encoder\.(?:layers|stages)|timm_model\.blocks)\.(\d+)\.")
_IMAGE_INPUT = re.compile(r"vision_model\.(?:embeddings|embedder|timm_model\.(?:conv_stem|bn1))\.")

# The attention of each layer. The pooling head's attention is of another kind, which low-rank updates do not fit.
_LORA_TARGETS = r".*self_attn\.(q_proj|k_proj|v_proj|out_proj)"
_LORA_SCALE = 2


class Towers(nn.Module):
    """A model with an image and a text tower, a temperature and a bias.

    Attributes:
        model: of transformers, with `get_image_features`, `get_text_features`, `logit_scale` and `logit_bias`.
        side: of the images, in pixels.
        tokenize: titles to token ids.
        was_trained: whether the parent was, before `prepare` gave the loss its start.
    """

    _mean: torch.Tensor
    _std: torch.Tensor

    def __init__(self, model: Any, processor: Any, tokenizer: Any) -> None:
        super().__init__()
        self._lora: PeftModel | None = None
        self._frozen: frozenset[str] = frozenset()
        self._frozen_layers = 0
        self.was_trained = True
        self.model = model
        self.processor = processor
        self._preparation = Preparation.of(processor)
        self.side: int = processor.size["height"]
        self.tokenize = Tokenize.of(tokenizer, model.config)
        # Buffers move to the model's device with it.
        self.register_buffer("_mean", 255 * torch.tensor(processor.image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", 255 * torch.tensor(processor.image_std).view(3, 1, 1), persistent=False)

    @classmethod
    def load(cls, folder: Path) -> Towers:
        """Load a parent from a folder that `save_pretrained()` wrote.

        Raises:
            LensError: the sigmoid loss cannot train this model, or a part of it is missing.
        """
        register_architecture(folder)
        with _loading(folder, "model"):
            model, loading = AutoModel.from_pretrained(
                folder, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
            )
        needed = ("get_image_features", "get_text_features", "logit_scale", "logit_bias")
        if lacking := [name for name in needed if not hasattr(model, name)]:
            raise LensError(
                f"parent {folder} is a {model.config.model_type} model without {lacking[0]}: fine-tune a SigLIP model"
            )
        if missing := sorted(loading["missing_keys"]):
            raise LensError(f"parent {folder} lacks weights, such as {missing[0]}: save it with save_pretrained()")
        with _loading(folder, "preprocessing"):
            processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
        with _loading(folder, "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if not (processor.size or {}).get("height"):
            raise LensError(f"parent {folder} scales images to no fixed size: fine-tune a SigLIP model")
        return cls(model, processor, tokenizer)

    def prepare(self, recipe: Recipe, *, gradient_checkpointing: bool = False) -> None:
        """Set up what a recipe trains: frozen towers, low-rank updates, the loss's parameters."""
        if not self.log_scale.any() and not self.bias.any():
            # Never trained: transformers makes both zero, where the loss would start a hundred times too high.
            self.was_trained = False
            nn.init.constant_(self.log_scale, INITIAL_LOG_SCALE)
            nn.init.constant_(self.bias, initial_bias(recipe.batch_size))
        if recipe.lora_rank:
            self._add_low_rank_updates(recipe.lora_rank)
        self._frozen, self._frozen_layers = recipe.freeze, recipe.freeze_image_layers
        parameters = dict(self.model.named_parameters())
        layers = 1 + max((layer for layer in map(_image_layer, parameters) if layer < math.inf), default=-1)
        if recipe.freeze_image_layers > layers:
            raise LensError(
                f"freeze_image_layers is {recipe.freeze_image_layers}, but the parent's image tower has {layers} layers: "
                "give that many at most"
            )
        for name, parameter in parameters.items():
            if self._stays(name):
                parameter.requires_grad_(False)
        self.log_scale.requires_grad_(True)
        self.bias.requires_grad_(True)
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def _add_low_rank_updates(self, rank: int) -> None:
        # Imported here: it takes longer than everything else, in every reading process too, and few recipes need it.
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=rank, lora_alpha=_LORA_SCALE * rank, target_modules=_LORA_TARGETS)
        try:
            # Kept out of the module's own children, which hold the same weights already.
            self.__dict__["_lora"] = get_peft_model(self.model, config)
        except ValueError as err:
            raise LensError(f"lora_rank: {str(err).splitlines()[0]}; train all weights with lora_rank 0") from err

    def _stays(self, name: str) -> bool:
        """Whether a parameter or module is frozen."""
        return tower_of(name) in self._frozen or _image_layer(name) < self._frozen_layers

    def train(self, mode: bool = True) -> Towers:
        """As for any module, but what is frozen stays in evaluation mode, so that its norms keep their statistics.

        So do all batch norms of an image tower that is frozen in part: it has learnt them from more images than come now.
        """
        super().train(mode)
        for name, module in self.model.named_modules():
            kept = (
                self._frozen_layers and "vision_model" in name and isinstance(module, nn.modules.batchnorm._BatchNorm)
            )
            if kept or self._stays(f"{name}."):
                module.eval()
        return self

    @property
    def log_scale(self) -> nn.Parameter:
        """The logarithm of the temperature."""
        return self.model.logit_scale  # type: ignore[no-any-return]

    @property
    def bias(self) -> nn.Parameter:
        return self.model.logit_bias  # type: ignore[no-any-return]

    def forward(self, pixels: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, 3, side, side) uint8 and (n, length) int64 → the images' and the texts' embeddings (n, d), unit length."""
        return _unit(self.image_features(pixels)), _unit(self.text_features(tokens))

    def image_features(self, pixels: torch.Tensor) -> Any:
        """(n, 3, side, side) uint8 → what the model gives: features (n, d), or an output that holds them."""
        return self.model.get_image_features(pixel_values=(pixels - self._mean) / self._std)

    def text_features(self, tokens: torch.Tensor) -> Any:
        """(n, length) int64 → what the model gives: features (n, d), or an output that holds them."""
        return self.model.get_text_features(input_ids=tokens)

    def learns(self, tower: str) -> bool:
        """Whether `image` or `text` is trained."""
        return tower not in self._frozen

    def prepare_images(self, images: Iterable[Image.Image]) -> NDArray[Any]:
        """RGB images, by the parent's own preprocessing as when a catalog is embedded → (n, 3, side, side), mostly uint8."""
        return np.stack([self._preparation.prepare(image) for image in images])

    def embed_images(self, images: Sequence[Image.Image], batch_size: int = 128) -> NDArray[np.float32]:
        """RGB images → (n, d) float32, unit length."""
        parts = _parts(images, batch_size)
        return np.concatenate([self.embed_prepared(self.prepare_images(part)) for part in parts])

    @torch.inference_mode()
    def embed_prepared(self, prepared: NDArray[Any], batch_size: int = 128) -> NDArray[np.float32]:
        """What `prepare_images` gives → (n, d) float32, unit length."""
        device = self.log_scale.device
        scale, shift = (torch.from_numpy(x).to(device) for x in (self._preparation.scale, self._preparation.shift))
        found = []
        for part in _parts(prepared, batch_size):
            pixels = torch.from_numpy(part).to(device).float() * scale + shift
            found.append(_unit(self.model.get_image_features(pixel_values=pixels)).cpu().numpy())
        return np.concatenate(found)

    @torch.inference_mode()
    def embed_titles(self, titles: Sequence[str], batch_size: int = 512) -> NDArray[np.float32]:
        """Titles → (n, d) float32, unit length."""
        found = []
        for part in _parts(titles, batch_size):
            tokens = self.tokenize.ids(list(part)).to(self.log_scale.device)
            found.append(_unit(self.model.get_text_features(input_ids=tokens)).cpu().numpy())
        return np.concatenate(found)

    def save(self, folder: Path) -> None:
        """Write weights as safetensors, preprocessing and tokenizer; low-rank updates are merged into the weights."""
        model = copy.deepcopy(self._lora).merge_and_unload() if self._lora is not None else self.model
        model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        self.tokenize.tokenizer.save_pretrained(folder)


def tower_of(parameter: str) -> str | None:
    """The tower, `image` or `text`, of a parameter or module by name; None for temperature and bias."""
    if any(part in parameter for part in ("vision_model", "visual_norm", "visual_projection")):
        return "image"
    return "text" if "text_model" in parameter or "text_projection" in parameter else None


def _image_layer(name: str) -> float:
    """The layer of the image tower that a parameter, or a module with a dot after it, belongs to, from 0.

    What comes before the layers belongs to the first one, what comes after them to none: infinity, as for all else.
    """
    if found := _IMAGE_LAYER.search(name):
        return int(found[1])
    return 0 if _IMAGE_INPUT.search(name) else math.inf


@contextmanager
def _loading(folder: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as err:
        raise LensError(f"parent {folder}: its {what} cannot be loaded: {str(err).splitlines()[0]}") from err


def _unit(output: Any) -> torch.Tensor:
    features: torch.Tensor = getattr(output, "pooler_output", output)
    return normalize(features.float(), dim=1)


def _parts(items: Any, size: int) -> Iterator[Any]:
    return (items[start : start + size] for start in range(0, len(items), size))
