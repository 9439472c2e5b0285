"""SigLIP with a convolutional image tower, which transformers loads from a folder like any other model.

A vision transformer learns little from a few thousand photos. A convolutional network, with locality built in, learns within
minutes from as many; one that has seen ImageNet knows what things look like before it starts. It is any of transformers' own,
or of timm's, which must be installed then.
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
    SiglipTextConfig,
    SiglipTextModel,
)


class ConvSiglipConfig(PreTrainedConfig):
    """The configs of both towers, as in transformers' own models."""

    model_type = "conv_siglip"
    sub_configs = {"text_config": SiglipTextConfig, "vision_config": AutoConfig}  # noqa: RUF012

    def __init__(self, text_config: Any = None, vision_config: Any = None, **kwargs: Any) -> None:
        self.text_config = _config(text_config, SiglipTextConfig.model_type)
        self.vision_config = _config(vision_config, ResNetConfig.model_type)
        super().__init__(**kwargs)


class ConvSiglipModel(PreTrainedModel):
    """SigLIP's text tower and a convolutional network, projected to the text tower's dimensions."""

    config_class = ConvSiglipConfig
    base_model_prefix = "conv_siglip"
    main_input_name = "pixel_values"

    def __init__(self, config: ConvSiglipConfig) -> None:
        super().__init__(config)
        self.text_model = SiglipTextModel(config.text_config)
        self.vision_model = AutoModel.from_config(config.vision_config)
        width = _width(self.vision_model)
        # Means of a rectifier's output are all positive: without centring, all images would start with the same embedding.
        self.visual_norm = nn.BatchNorm1d(width)
        self.visual_projection = nn.Linear(width, config.text_config.projection_size)
        # As transformers' own SigLIP is made: where they start is a matter of the training.
        self.logit_scale = nn.Parameter(torch.zeros(1))
        self.logit_bias = nn.Parameter(torch.zeros(1))
        self.post_init()

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(n, 3, side, side) → (n, d)."""
        # The fastest memory format for convolutions, on CPUs and GPUs alike.
        pooled = self.vision_model(pixel_values.contiguous(memory_format=torch.channels_last)).pooler_output
        return self.visual_projection(self.visual_norm(pooled.flatten(1)))  # type: ignore[no-any-return]

    def get_text_features(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(n, length) → (n, d)."""
        return self.text_model(input_ids).pooler_output  # type: ignore[no-any-return]


def _config(given: Any, default: str) -> PreTrainedConfig:
    if isinstance(given, PreTrainedConfig):
        return given
    content = dict(given or {})
    made: PreTrainedConfig = AutoConfig.for_model(content.pop("model_type", default), **content)
    return made


def _width(tower: Any) -> int:
    """Of the tower's pooled output."""
    timm = getattr(tower, "timm_model", None)
    return int(timm.num_features if timm is not None else tower.config.hidden_sizes[-1])


# So that its folder is loaded like any other model's.
AutoConfig.register(ConvSiglipConfig.model_type, ConvSiglipConfig, exist_ok=True)
AutoModel.register(ConvSiglipConfig, ConvSiglipModel, exist_ok=True)
