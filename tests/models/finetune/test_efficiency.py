"""What a training could do: a pair's arithmetic, by what learns, and a GPU's peak, by its name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_training import RECIPE
from torch.utils.flop_counter import FlopCounterMode

from models.finetune.efficiency import flop_per_pair, peak_flops
from models.finetune.towers import Towers


def flop(siglip: Path, freeze: frozenset[str] = frozenset()) -> int:
    towers = Towers.load(siglip)
    towers.prepare(RECIPE.model_copy(update={"freeze": freeze}))
    return flop_per_pair(towers.train())


def test_a_tower_that_learns_takes_three_times_its_forward_pass(siglip: Path) -> None:
    image, text = (flop(siglip, frozenset({frozen})) for frozen in ("text", "image"))
    forward = Towers.load(siglip).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward(torch.zeros((1, 3, 16, 16), dtype=torch.uint8), forward.tokenize.ids([""]))
    once = counter.get_total_flops()
    assert 0 < once < image < flop(siglip) == 3 * once
    assert image + text == 4 * once


def test_counting_leaves_the_mode_and_the_gradients_alone(siglip: Path) -> None:
    towers = Towers.load(siglip).train()
    flop_per_pair(towers)
    assert towers.training
    assert all(parameter.grad is None for parameter in towers.parameters())


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10", 125e12),
        ("Tesla K80", None),
    ],
)
def test_a_card_is_known_by_its_name(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak
