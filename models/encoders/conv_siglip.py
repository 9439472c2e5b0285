"""SigLIP with a convolutional image tower, which transformers loads from a folder like any other model.

A vision transformer learns little from a few thousand photos. A residual network, with locality built in, learns within
minutes from as many to tell the item from the seller's floor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    SiglipTextConfig,
    SiglipTextModel,
)

from models.finetune.sigmoid_loss import INITIAL_BIAS, INITIAL_LOG_SCALE


class ConvSiglipConfig(PreTrainedConfig):
    """The configs of both towers, as in transformers' own models."""

    model_type = "conv_siglip"
    sub_configs = {"text_config": SiglipTextConfig, "vision_config": ResNetConfig}  # noqa: RUF012

    def __init__(self, text_config: Any = None, vision_config: Any = None, **kwargs: Any) -> None:
        self.text_config = _config(SiglipTextConfig, text_config)
        self.vision_config = _config(ResNetConfig, vision_config)
        super().__init__(**kwargs)


class ConvSiglipModel(PreTrainedModel):
    """SigLIP's text tower and a residual network, projected to the text tower's dimensions."""

    config_class = ConvSiglipConfig
    base_model_prefix = "conv_siglip"
    main_input_name = "pixel_values"

    def __init__(self, config: ConvSiglipConfig) -> None:
        super().__init__(config)
        self.text_model = SiglipTextModel(config.text_config)
        self.vision_model = ResNetModel(config.vision_config)
        width = config.vision_config.hidden_sizes[-1]
        # Means of a rectifier's output are all positive: without centring, all images would start with the same embedding.
        self.visual_norm = nn.BatchNorm1d(width)
        self.visual_projection = nn.Linear(width, config.text_config.projection_size)
        self.logit_scale = nn.Parameter(torch.full((1,), INITIAL_LOG_SCALE))
        self.logit_bias = nn.Parameter(torch.full((1,), INITIAL_BIAS))
        self.post_init()

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(n, 3, side, side) → (n, d)."""
        # The fastest memory format for convolutions, on CPUs and GPUs alike.
        pooled = self.vision_model(pixel_values.contiguous(memory_format=torch.channels_last)).pooler_output
        return self.visual_projection(self.visual_norm(pooled.flatten(1)))  # type: ignore[no-any-return]

    def get_text_features(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(n, length) → (n, d)."""
        return self.text_model(input_ids).pooler_output  # type: ignore[no-any-return]


def _config(of: Any, given: Any) -> Any:
    return given if isinstance(given, PreTrainedConfig) else of(**(given or {}))


# So that its folder is loaded like any other model's.
AutoConfig.register(ConvSiglipConfig.model_type, ConvSiglipConfig, exist_ok=True)
AutoModel.register(ConvSiglipConfig, ConvSiglipModel, exist_ok=True)
