"""What a comparison of encoders finds: a row per encoder, alone or projected, and rows for orders that need none."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from listing_lens.errors import LensError
from models.encoders.cost import Cost

# In random order, or as they were shown, items are ranked without an encoder.
Role = Literal["fine-tuned", "parent", "compared", "random", "logged"]
# As the evaluation names them: the encoder alone, or with its projection.
Variant = Literal["embedding", "projected"]

# The metric that is looked at first.
HEADLINE = "ndcg@5"


class Estimate(BaseModel):
    """A mean over sessions, and the bounds of its 95 % bootstrap interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


class Scores(BaseModel):
    """Metrics over sessions. Those that share a tapped product stay together when they are resampled, as one cluster."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sessions: int = Field(gt=0)
    clusters: int = Field(gt=0)
    metrics: dict[str, Estimate]


class ComparisonRow(BaseModel):
    """How an encoder, or an order that needs none, ranks the sessions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    # None where there is no encoder.
    encoder_id: str | None = None
    encoder_source: str | None = None
    variant: Variant | None = None
    dims: int | None = None
    cost: Cost | None = None
    # Of the sessions that show nothing that was learnt from, as far as is known; these are what is reported.
    unseen: Scores
    # Of the others, if there are any.
    seen: Scores | None = None
    # Over the parent, of the same variant, on the same unseen sessions: differences of pairs.
    gain: Estimate | None = None

    @property
    def label(self) -> str:
        """What the row is called in tables and figures."""
        if self.role in ("random", "logged"):
            return f"{self.role} order"
        name = self.encoder_id if self.role == "compared" and self.encoder_id else self.role
        return name if self.variant == "embedding" else f"{name} + PCA {self.dims}"


class Comparison(BaseModel):
    """The table of encoders on the same sessions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Of the training; or the window of the sessions.
    name: str
    rows: tuple[ComparisonRow, ...]

    @property
    def headline(self) -> str:
        """A sentence on the fine-tuned encoder, beside its parent, random and logged order, on unseen sessions.

        On the parent, where training found no better encoder.

        Raises:
            LensError: the comparison is not of a training.
        """
        parent = self._require("parent")
        tuned = self.row("fine-tuned")
        named = {"random order": self._require("random", None), "the logged order": self._require("logged", None)}
        if tuned:
            named = {"its parent": parent, **named}
        first = tuned or parent
        others = ", ".join(f"{name} {row.unseen.metrics[HEADLINE]}" for name, row in named.items())
        ending = (
            f"gain over the parent {tuned.gain}"
            if tuned
            else "this is the parent, as training found none that is better"
        )
        return (
            f"nDCG@5 {first.unseen.metrics[HEADLINE]} on {first.unseen.sessions:,} unseen test sessions of "
            f"{first.unseen.clusters:,} products; {others}; {ending}. "
            "Means, with 95 % bootstrap intervals over products."
        )

    def _require(self, role: Role, variant: Variant | None = "embedding") -> ComparisonRow:
        found = self.row(role, variant)
        if found is None:
            raise LensError(f"the comparison of {self.name} has no row of {role}: compare it again")
        return found

    def row(self, role: Role, variant: Variant | None = "embedding") -> ComparisonRow | None:
        """The first row of a role and a variant; None if there is none."""
        return next((row for row in self.rows if (row.role, row.variant) == (role, variant)), None)
