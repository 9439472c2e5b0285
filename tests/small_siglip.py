"""A small SigLIP of the real architecture, with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil


def save_siglip(folder: Path, *, seed: int = 0) -> Path:
    """Write one to a folder: 192-d, 64-pixel images."""
    config = SiglipConfig(
        text_config={
            "vocab_size": 4096,
            "hidden_size": 192,
            "intermediate_size": 384,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 32,
            "projection_size": 192,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
        },
        vision_config={
            "hidden_size": 192,
            "intermediate_size": 576,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "image_size": 64,
            "patch_size": 8,
        },
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SiglipModel(config)
    model.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder
