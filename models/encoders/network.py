"""What computes an encoder's features: an image tower on a device, in torch."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


class Features(Protocol):
    """Computes features (n, dims) float32 from prepared images (n, …), n at least 1. Threads may call it."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def __call__(self, prepared: NDArray[Any]) -> NDArray[np.float32]: ...


class ImageTower(nn.Module):
    """The part of a model that turns normalised pixels into an image embedding; a text tower is dropped."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.eval()
        self._of_both = hasattr(model, "get_image_features")
        for text in ("text_model", "text_projection"):
            if self._of_both and hasattr(model, text):
                # Half of the memory or more in every worker, and images never use it.
                delattr(model, text)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        output = (
            self.model.get_image_features(pixel_values=pixels) if self._of_both else self.model(pixel_values=pixels)
        )
        features: torch.Tensor = getattr(output, "pooler_output", output)
        return features


@dataclass(frozen=True)
class Network:
    """A tower on a device, and the affine map from prepared images to its input: pixels * scale + shift."""

    tower: nn.Module
    device: torch.device
    dtype: torch.dtype
    scale: torch.Tensor
    shift: torch.Tensor

    @classmethod
    def of(
        cls, tower: nn.Module, device: torch.device, scale: NDArray[np.float32], shift: NDArray[np.float32]
    ) -> Network:
        """In float32, on a device; scale and shift are (3, 1, 1)."""
        constants = (torch.from_numpy(each).to(device) for each in (scale, shift))
        return cls(tower.to(device), device, torch.float32, *constants)

    @torch.inference_mode()
    def __call__(self, prepared: NDArray[Any]) -> NDArray[np.float32]:
        pixels = torch.from_numpy(prepared).to(self.device).float() * self.scale + self.shift
        features: NDArray[np.float32] = self.tower(pixels.to(self.dtype)).float().cpu().numpy()
        return features

    def in_bfloat16(self) -> Network:
        """A copy that computes in bfloat16."""
        return replace(self, tower=copy.deepcopy(self.tower).to(torch.bfloat16), dtype=torch.bfloat16)
