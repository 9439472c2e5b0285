"""The recipe of a fine-tuning: everything that decides the outcome, besides the parent and the pairs.

And the machine: what is left to the host that computes it, which may change from one to another while a training goes on.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.errors import LensError

Beta = Annotated[float, Field(ge=0, lt=1)]


class Recipe(BaseModel):
    """Hyperparameters. The defaults are the recommendation paper's, and SigLIP's where it is silent.

    A batch is the same pairs on however many devices, which share it; the loss compares all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: float = Field(5.0, gt=0)
    batch_size: int = Field(256, gt=1, description="pairs a step, of all devices together")
    precision: Literal["bf16", "no"] = Field("bf16", description="of autocast; weights and loss stay float32")
    seed: int = Field(0, ge=0)

    # ---- optimisation (AdamW) ----
    learning_rate: float = Field(5e-5, gt=0)
    image_learning_rate: float | None = Field(
        None, gt=0, description="of the image tower without its projection; None: learning_rate"
    )
    scalar_learning_rate: float | None = Field(
        None, gt=0, description="of the loss's temperature and bias; None: learning_rate"
    )
    warmup_share: float = Field(0.05, ge=0, lt=1, description="of all steps; then a cosine to zero")
    weight_decay: float = Field(
        1e-4,
        ge=0,
        lt=1,
        description="share by which a step shrinks matrices, at the schedule's peak; norms and biases have none",
    )
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    max_gradient_norm: float = Field(1.0, gt=0)
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="learning rate factor for each layer further from the output; 1: the same for all"
    )

    # ---- what is trained ----
    freeze: frozenset[Literal["image", "text"]] = Field(frozenset(), description="towers that stay as they are")
    freeze_image_layers: int = Field(
        0,
        ge=0,
        description="first layers of the image tower that stay; all its batch norms keep their statistics then",
    )
    lora_rank: int = Field(0, ge=0, description="of low-rank updates to the attention's matrices; 0: all weights")

    # ---- pairs ----
    duplicates_by: Literal["title", "product"] | None = Field(
        "title", description="pairs of a batch that are the same thing; None: none are"
    )
    duplicates_as: Literal["positive", "mask"] = "mask"
    shuffle_buffer: int = Field(8192, gt=0, description="pairs that a reader shuffles among")

    # ---- augmentation ----
    smallest_crop: float = Field(0.6, gt=0, le=1, description="the least share of the image's area that a crop keeps")
    flip: float = Field(0.5, ge=0, le=1, description="chance of a mirror image")
    jitter: float = Field(0.2, ge=0, lt=1, description="brightness and contrast change by up to this share")

    # ---- validation ----
    validate_every: int = Field(500, gt=0, description="steps")
    validation_pairs: int = Field(2000, gt=0)
    validation_sessions: int = Field(300, ge=0)
    patience: int = Field(5, gt=0, description="validations without improvement after which training stops")
    judged_by: str = Field("", description="the metric that decides; empty: nDCG@5 of sessions, or title recall@10")

    @model_validator(mode="after")
    def _some_tower_learns(self) -> Recipe:
        if len(self.freeze) == 2:
            raise ValueError("both towers are frozen: nothing would be learnt")
        return self

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the hash of its content."""
        # Sets have no fixed order.
        content = repr(sorted((name, sorted(v) if isinstance(v, frozenset) else v) for name, v in self))
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Read JSON. Raises LensError that names the first field that does not fit."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as err:
            first = err.errors()[0]
            name = ".".join(map(str, first["loc"])) or "JSON"
            raise LensError(f"recipe: {name}: {first['msg']}; its fields are {', '.join(cls.model_fields)}") from err


FOR_A_SMALL_PARENT: dict[str, Any] = {
    "epochs": 7,
    "batch_size": 128,
    "precision": "no",
    "learning_rate": 1e-3,
    # What the image tower has seen of ImageNet is more than a few photos can teach it: it is changed with care.
    "image_learning_rate": 3e-4,
    "freeze_image_layers": 5,
    "scalar_learning_rate": 1e-2,
    "warmup_share": 0.1,
    "betas": [0.9, 0.98],
    "smallest_crop": 0.4,
    "duplicates_as": "positive",
    # Of the parent and of the result: one more would take a tenth of the training. Hundreds of titles say which is better; of a
    # few dozen sessions, chance does.
    "validate_every": 100,
    "judged_by": "titles/recall@10",
}
"""For a small parent whose image tower is trained, two cores and a few thousand pairs. The defaults suit a published model, on a
GPU and a million pairs."""


class Machine(BaseModel):
    """How a host computes a training. The outcome is the same, up to rounding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    readers: int = Field(2, ge=0, description="processes per device that decode ahead; 0: none")
    micro_batch_size: int | None = Field(
        None, gt=0, description="pairs of a device per forward pass, by gradient caching; None: all of them"
    )
    gradient_checkpointing: bool = Field(False, description="computes activations twice, to keep fewer of them")
    checkpoint_every: int = Field(500, gt=0, description="steps")
