"""How well a training uses its devices: the arithmetic that a pair takes, against what a device could do."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from models.finetune.towers import Towers

# Dense bfloat16 matrix products, 1e12 a second, by a part of the name that CUDA gives the device; from NVIDIA's data sheets.
# A more specific name comes before a shorter one that it contains.
_PEAK = {
    "B200": 2250,
    "H100 PCIe": 756,
    "H100": 989,
    "H200": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "A10": 125,
}


def peak_flops(device_name: str) -> float | None:
    """What a GPU can do at most, in floating-point operations a second in bfloat16; None if it is not known."""
    return next((1e12 * peak for part, peak in _PEAK.items() if part in device_name), None)


@torch.no_grad()
def flop_per_pair(towers: Towers) -> int:
    """Floating-point operations that a step takes for each pair, recomputation not included.

    Those of the towers' matrix products and convolutions: forward, and twice that backward for a tower that learns
    (Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B).
    """
    device = towers.log_scale.device
    pixels = torch.zeros((1, 3, towers.side, towers.side), dtype=torch.uint8, device=device)
    tokens = towers.tokenize.ids([""]).to(device)
    training = towers.training
    towers.eval()
    total = 0
    for tower, embed, inputs in (("image", towers.image_features, pixels), ("text", towers.text_features, tokens)):
        with FlopCounterMode(display=False) as counter:
            embed(inputs)
        total += counter.get_total_flops() * (3 if towers.learns(tower) else 1)
    towers.train(training)
    return total
