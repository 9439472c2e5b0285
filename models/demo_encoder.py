"""A small SigLIP made from a config: the real architecture at a size that a laptop runs, with untrained weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

SIDE = 64


def save_untrained_siglip(folder: Path, *, seed: int = 0) -> Path:
    """Write a SigLIP of about 3 million parameters (192-d, 64-pixel images) with random weights to a folder.

    The same seed gives the same weights, and so the same encoder id.
    """
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
            "image_size": SIDE,
            "patch_size": 8,
        },
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SiglipModel(config)
    model.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder
