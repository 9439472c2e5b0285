"""The text tower of an encoder: what is written becomes an embedding in the space of the encoder's images.

Only models that were trained on images and texts together have one, such as SigLIP and CLIP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch.nn.functional import normalize
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, AutoTokenizer

from models.encoders.files import encoder_folder, encoder_id, require_id, thumbnail_side
from models.encoders.own_code import may_run_own_code, register_architecture
from models.encoders.runtime import DEFAULT_RUNTIME, Runtime
from models.errors import LensError

# SigLIP was trained on texts that are padded to their full length, without a mask, and fails on others.
_PADDED = {"siglip", "siglip2", "conv_siglip"}
_LONGEST = 512
_VISION = ("vision_model", "visual_norm", "visual_projection")
_load_lock = Lock()


class NoTextTowerError(LensError):
    """An encoder is of images alone."""


@dataclass(frozen=True)
class Tokenize:
    """Texts to token ids, cut at the text tower's full length.

    Attributes:
        tokenizer: the model's own.
        length: of the longest text, in tokens.
        pads: whether every text is padded to this length, and no mask is made.
    """

    tokenizer: Any
    length: int
    pads: bool

    @classmethod
    def of(cls, tokenizer: Any, config: Any) -> Tokenize:
        """As a model with this config takes its texts."""
        most = getattr(getattr(config, "text_config", None), "max_position_embeddings", _LONGEST)
        return cls(tokenizer, min(most, tokenizer.model_max_length), config.model_type in _PADDED)

    def __call__(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """The text tower's arguments: `input_ids` (n, length) int64, and `attention_mask` (n, length) unless all are padded."""
        found = self.tokenizer(
            texts,
            padding="max_length" if self.pads else True,
            truncation=True,
            max_length=self.length,
            return_attention_mask=not self.pads,
            return_token_type_ids=False,
            return_tensors="pt",
        )
        return dict(found)

    def ids(self, texts: list[str]) -> torch.Tensor:
        """The token ids alone: (n, length) int64."""
        return self(texts)["input_ids"]


@dataclass(frozen=True)
class TextEncoder:
    """A text tower in evaluation mode, with its own tokenizer; it computes on the processor, in float32.

    Attributes:
        encoder_id: of the encoder that it belongs to.
        tokenize: texts to token ids.
    """

    encoder_id: str
    tokenize: Tokenize
    model: Any

    @classmethod
    def load(cls, source: str, trusted_code: Sequence[str] = ()) -> TextEncoder:
        """The text tower of the encoder that a source names.

        Args:
            source: a folder, a hub id (with @revision) or gs://…
            trusted_code: hub ids with a pinned revision (id@commit) whose own code may run.

        Raises:
            NoTextTowerError: the encoder has none.
            LensError: the tower or its tokenizer cannot be loaded.
        """
        if thumbnail_side(source):
            raise _no_tower(source)
        folder = encoder_folder(source)
        register_architecture(folder)
        try:
            own_code = may_run_own_code(source, folder, trusted_code)
            if not own_code and not hasattr(_class_of(folder), "get_text_features"):
                raise _no_tower(source)
            model: Any = AutoModel.from_pretrained(
                folder, use_safetensors=True, trust_remote_code=own_code, dtype=torch.float32
            )
            if not hasattr(model, "get_text_features"):
                raise _no_tower(source)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=own_code)
            for part in _VISION:
                if hasattr(model, part):
                    # Another copy of it computes the images.
                    delattr(model, part)
            found = cls(encoder_id(source, folder), Tokenize.of(tokenizer, model.config), model.eval())
            # A tokenizer of the model's own may have another interface.
            found.embed(["shoes"])
        except (OSError, ValueError, TypeError, ImportError, RuntimeError, SafetensorError) as err:
            raise LensError(
                f"the text tower of encoder {source!r} cannot be loaded: {(str(err) or repr(err)).splitlines()[0]}"
            ) from err
        return found

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed n texts, n at least 1: (n, d) float32, each row of unit length."""
        output = self.model.get_text_features(**self.tokenize(list(texts)))
        features = getattr(output, "pooler_output", output)
        unit: NDArray[np.float32] = normalize(features.float(), dim=1).numpy()
        return unit


def require_text_tower(source: str, trusted_code: Sequence[str] = ()) -> None:
    """Look for a text tower in an encoder's config, without loading weights. Code of its own is not run, but trusted to have one.

    Raises:
        NoTextTowerError: the encoder has none.
        LensError: it cannot be found, or its config names no known architecture.
    """
    if thumbnail_side(source):
        raise _no_tower(source)
    folder = encoder_folder(source)
    register_architecture(folder)
    if may_run_own_code(source, folder, trusted_code):
        return
    try:
        architecture = _class_of(folder)
    except (OSError, ValueError, KeyError) as err:
        raise LensError(
            f"encoder {source!r} has no config of a known architecture: {str(err).splitlines()[0]}"
        ) from err
    if not hasattr(architecture, "get_text_features"):
        raise _no_tower(source)


def _class_of(folder: Path) -> Any:
    """The class of a model, from its config alone."""
    return MODEL_MAPPING[type(AutoConfig.from_pretrained(folder))]


def _no_tower(source: str) -> NoTextTowerError:
    return NoTextTowerError(f"encoder {source!r} has no text tower: choose one of images and texts, such as SigLIP")


# As many as image towers are kept: two while the catalog moves from one to the other.
@lru_cache(maxsize=3)
def _load_once(source: str, trusted_code: tuple[str, ...]) -> TextEncoder:
    return TextEncoder.load(source, trusted_code)


def require_text_encoder(source: str, wanted_id: str, runtime: Runtime = DEFAULT_RUNTIME) -> TextEncoder:
    """The process's one copy of an encoder's text tower, checked to belong to the encoder of this id.

    Raises:
        NoTextTowerError: the encoder has none.
        LensError: it cannot be loaded, or the source names another encoder by now.
    """
    with _load_lock:
        found = _load_once(source, runtime.trusted_code)
    require_id(source, found.encoder_id, wanted_id)
    return found
