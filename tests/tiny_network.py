"""Encoders whose network is a line of arithmetic, for tests of what is done with networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from models.encoders.encoder import Encoder
from models.encoders.network import Network

SIDE = 4


class Sums(nn.Module):
    """(n, 3, h, w) → (n, h): the sums of the rows of an image's first channel."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels[:, 0].sum(dim=2)


def encoder_of(tower: nn.Module, prepare: Callable[[Image.Image], NDArray[Any]] | None = None) -> Encoder:
    """The encoder of a network that gives as many features as its images have rows."""
    scale = np.full((3, 1, 1), 0.01, np.float32)
    network = Network.of(tower, torch.device("cpu"), scale, np.zeros_like(scale))
    return Encoder("a test's", "tests-01234567", SIDE, SIDE, prepare or _scaled, network)


def _scaled(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.resize((SIDE, SIDE))).transpose(2, 0, 1)
