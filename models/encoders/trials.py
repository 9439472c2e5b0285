"""What calibration found out of backends, as it is recorded. Needs no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from models.encoders.runtime import Backend

LEAST_RECALL = 0.99


class Recall(BaseModel):
    """The share of float32's 10 nearest neighbours that are found, on average, by the vectors of a backend.

    Attributes:
        own: the backend's vectors among the backend's.
        queried: float32's among the backend's, as queries are.
        mixed: float32's among vectors of which every other one is float32's, as after a host without the backend.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    own: float = Field(ge=0, le=1)
    queried: float = Field(ge=0, le=1)
    mixed: float = Field(ge=0, le=1)

    @property
    def least(self) -> float:
        return min(self.own, self.queried, self.mixed)


class Trial(BaseModel):
    """One backend: its speed, the neighbours it finds, its worst cosine with float32; or why it cannot run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Backend
    images_per_s: float | None = None
    recall: Recall | None = None
    least_cosine: float | None = None
    refusal: str | None = None

    @property
    def accepted(self) -> bool:
        return self.recall is not None and self.recall.least >= LEAST_RECALL

    @property
    def objection(self) -> str:
        """Why it is not used, however fast; empty if it may be."""
        if self.recall is None:
            return self.refusal or "not tried"
        return "" if self.accepted else f"finds less than {LEAST_RECALL:.0%} of float32's neighbours"


class Calibration(BaseModel):
    """What was chosen for an encoder, on which host, by how many photos, and from what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder_id: str
    host: str
    images: int
    chosen: Backend
    trials: tuple[Trial, ...]
