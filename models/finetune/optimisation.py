"""The optimiser's settings for each parameter: its learning rate, and whether it decays."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_cosine_schedule_with_warmup

from models.finetune.recipe import Recipe

# The stack of a transformer's layers; a residual network's stages do not count.
_LAYER = re.compile(r"(.*?\.encoder\.layers)\.(\d+)\.")
# Matrices that multiply nothing: lookup tables, and the token that the image tower pools with.
_LOOKED_UP = ("token_embedding", "position_embedding", "probe")


def optimiser(model: nn.Module, recipe: Recipe) -> AdamW:
    """AdamW over the trainable parameters, fused: one pass over memory per step."""
    return AdamW(parameter_groups(model, recipe), lr=recipe.learning_rate, betas=recipe.betas, fused=True)


def schedule(of: AdamW, recipe: Recipe, steps: int) -> LRScheduler:
    """Linear warm-up, then a cosine to zero."""
    made: LRScheduler = get_cosine_schedule_with_warmup(of, round(recipe.warmup_share * steps), steps)
    return made


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameters by learning rate and weight decay.

    A step shrinks a matrix by the recipe's weight decay times the schedule, whatever its learning rate (Loshchilov & Hutter
    2019, arXiv:1711.05101, Algorithm 2; so does big_vision, with which SigLIP was trained). torch's AdamW multiplies it by the
    learning rate as well, which is divided out here.

    Norms and biases do not decay, nor do embeddings, temperature and bias of the loss: shrinking a number that nothing
    multiplies only moves it. With `layer_decay`, layers nearer to a tower's input learn more slowly, and its input
    embeddings most slowly (Clark et al. 2020, ELECTRA, arXiv:2003.10555).
    """
    depths = _depths(model)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = recipe.learning_rate
        if recipe.image_learning_rate and "vision_model" in name:
            rate = recipe.image_learning_rate
        rate *= recipe.layer_decay ** _distance_from_output(name, depths)
        if parameter.numel() == 1 and recipe.scalar_learning_rate:
            rate = recipe.scalar_learning_rate
        decay = recipe.weight_decay if _decays(name, parameter) else 0.0
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay / rate})
        group["params"].append(parameter)
    # The group with the recipe's own rate comes last, where the log looks for it.
    return sorted(groups.values(), key=lambda group: group["lr"] == recipe.learning_rate)


def _decays(name: str, parameter: torch.Tensor) -> bool:
    return parameter.ndim > 1 and not any(part in name for part in _LOOKED_UP)


def _depths(model: nn.Module) -> dict[str, int]:
    """How many layers each stack has, by its name."""
    depths: dict[str, int] = {}
    for name, _ in model.named_parameters():
        if found := _LAYER.match(name):
            depths[found[1]] = max(depths.get(found[1], 0), int(found[2]) + 1)
    return depths


def _distance_from_output(name: str, depths: dict[str, int]) -> int:
    """0 for what comes after a tower's layers, 1 for the last layer, and so on to the embeddings."""
    if found := _LAYER.match(name):
        return depths[found[1]] - int(found[2])
    if "embeddings" in name:
        stack = next((stack for stack in depths if stack.split(".encoder")[0] in name), None)
        return depths[stack] + 1 if stack else 0
    return 0
