"""Projections in the lake: stored by id, with a record of each fit and its assessment under the fit's name."""

from __future__ import annotations

from contextlib import suppress

from pydantic import BaseModel, ConfigDict, Field

from listing_lens.errors import LensError
from listing_lens.lake.windows import Lake
from models.embedder import EmbedderCard
from models.projection import Projection

# Recall is assessed at these cutoffs; advice is based on the headline one.
CUTOFFS = (1, 10, 100)
HEADLINE_K = 10
HEADLINE = f"recall@{HEADLINE_K}"
# A smaller gain in headline recall is not worth a rebuild.
_NOTICEABLE = 0.01


class Fit(BaseModel):
    """The record of a fit: the resulting embedder, and what it was fitted on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    card: EmbedderCard
    rows: int
    # The version of the encoder's table; and the name of the window in which the items were last updated, or None for all.
    version: int
    within: str | None = None
    # The share of the items that was sampled, by a hash of their ids.
    share: float = Field(default=1.0, gt=0, le=1)
    explained_variance: float


class Quality(BaseModel):
    """How well a projection preserves exact search with the full embeddings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    projection_id: str
    dims: int
    # Dimensions (all of the projection's, and fewer) → metric ("recall@10") → mean over the queries.
    recall: dict[int, dict[str, float]]


class Change(BaseModel):
    """How a fit differs from the previous projection, evaluated on the same items."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    before: Quality
    # Principal angles between the two subspaces.
    largest_angle_degrees: float
    mean_angle_degrees: float
    # The share of the new projection's variance that lies in the previous projection's subspace.
    variance_held: float
    # The gain in recall@10, and its standard error over the queries.
    gain: float
    gain_error: float


class Assessment(BaseModel):
    """The quality of a fitted projection, and how it differs from the previous one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: int
    queries: int
    fitted: Quality
    # recall@10 of all dimensions, centred on the fit's mean: the limit that more axes can approach.
    centred: float | None = None
    # None when there is no previous projection of the same encoder.
    change: Change | None

    @property
    def advice(self) -> str:
        """One sentence to help decide on a rebuild."""
        change, now = self.change, self.fitted.recall[self.fitted.dims][HEADLINE]
        finds = f"{HEADLINE} against exact search with the whole embeddings is {now:.3f}"
        if self.centred is not None:
            finds += f" ({self.centred:.3f} with all dimensions about their mean)"
        if change is None:
            return f"{finds}; there is no projection before it to compare with."
        if change.before.projection_id == self.fitted.projection_id:
            return f"{finds}; the fit gives the projection before it again: there is nothing to rebuild."
        gained = (
            f"{finds}, {change.gain:+.3f} ± {change.gain_error:.3f} beside the projection before it, whose axes hold "
            f"{change.variance_held:.1%} of the variance that it keeps"
        )
        # Less than two standard errors may be chance.
        if abs(change.gain) > max(_NOTICEABLE, 2 * change.gain_error):
            return f"{gained}: {'a rebuild is worth considering' if change.gain > 0 else 'keep the one before'}."
        if abs(change.gain) + 2 * change.gain_error <= 2 * _NOTICEABLE:
            return f"{gained}: a rebuild would change little."
        return (
            f"{gained}: {self.queries:,} queries cannot tell whether a rebuild is worth it; assess the fit with more."
        )


def projection_folder(lake: Lake, projection_id: str) -> str:
    return f"{lake.root}/projections/{projection_id}"


def fit_path(lake: Lake, name: str) -> str:
    """The path of the record of the fit with this name."""
    return f"{lake.root}/fits/{name}.json"


def assessment_path(lake: Lake, name: str) -> str:
    """The path of the assessment of the fit with this name."""
    return f"{lake.root}/fits/{name}-assessment.json"


def save_projection(lake: Lake, projection: Projection) -> None:
    """Save a projection under its id; the JSON is written last, and makes it exist.

    An existing intact projection is not overwritten, since an index may be in use with it: refitting the same embeddings
    gives the same projection, except for the last digits of the mean and the spectrum, which the id ignores.
    """
    folder = projection_folder(lake, projection.projection_id)
    if projection_exists(lake, projection.projection_id):
        with suppress(LensError):
            load_projection(lake, projection.projection_id, projection.encoder_id)
            return
    tensors, about = projection.save()
    lake.write_bytes(f"{folder}/projection.safetensors", tensors)
    lake.write_bytes(f"{folder}/projection.json", about)


def projection_exists(lake: Lake, projection_id: str) -> bool:
    return lake.exists(f"{projection_folder(lake, projection_id)}/projection.json")


def load_projection(lake: Lake, projection_id: str, encoder_id: str | None) -> Projection:
    """A projection from the lake.

    Args:
        lake: the lake.
        projection_id: the projection's id.
        encoder_id: the encoder whose embeddings it will be applied to; None accepts any.

    Raises:
        LensError: the lake does not have the projection, has a different one in its place, or it is for another encoder.
    """
    folder = projection_folder(lake, projection_id)
    try:
        projection = Projection.load(
            lake.read_bytes(f"{folder}/projection.safetensors"), lake.read_bytes(f"{folder}/projection.json")
        )
    except FileNotFoundError:
        raise LensError(
            f"projection {projection_id} is not in the lake {lake.root}: fit one, or check LENS_LAKE"
        ) from None
    if projection.projection_id != projection_id:
        raise LensError(f"{folder} holds projection {projection.projection_id}: restore the files, or fit it again")
    if encoder_id and projection.encoder_id and projection.encoder_id != encoder_id:
        raise LensError(
            f"projection {projection_id} was fitted on embeddings of {projection.encoder_id}, not of {encoder_id}: "
            "use one that was fitted on this encoder's"
        )
    return projection


def load_fit(lake: Lake, name: str) -> Fit:
    """The record of a fit. Raises LensError when no fit of this name has finished."""
    try:
        return Fit.model_validate_json(lake.read_bytes(fit_path(lake, name)))
    except FileNotFoundError:
        raise LensError(f"no fit {name!r} in the lake {lake.root}: run `lens projection fit`") from None


def load_assessment(lake: Lake, name: str) -> Assessment | None:
    """The assessment of a fit; None if it has not been assessed."""
    try:
        return Assessment.model_validate_json(lake.read_bytes(assessment_path(lake, name)))
    except FileNotFoundError:
        return None
