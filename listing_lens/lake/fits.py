"""Where projections are kept: in the lake, by id, with a record of each fit and of its assessment by the fit's name."""

from __future__ import annotations

from contextlib import suppress

from pydantic import BaseModel, ConfigDict, Field

from listing_lens.errors import LensError
from listing_lens.lake.windows import Lake
from models.embedder import EmbedderCard
from models.projection import Projection

# Recall at these is assessed, and this one decides.
CUTOFFS = (1, 10, 100)
HEADLINE_K = 10
HEADLINE = f"recall@{HEADLINE_K}"
# A smaller gain in it is not worth a rebuild.
_NOTICEABLE = 0.01


class Fit(BaseModel):
    """What a fit left behind: the embedder that it makes possible, and what it was fitted on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    card: EmbedderCard
    rows: int
    # Of the encoder's table; and the window that the items were last updated in, by its name, or None for all.
    version: int
    within: str | None = None
    # Of the items, sampled by their hash.
    share: float = Field(default=1.0, gt=0, le=1)
    explained_variance: float


class Quality(BaseModel):
    """What a projection keeps of exact search with the whole embeddings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    projection_id: str
    dims: int
    # By dimensions, its own and fewer: "recall@10" → the mean over the queries.
    recall: dict[int, dict[str, float]]


class Change(BaseModel):
    """What a fit changes against the projection before it, judged on the same items."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    before: Quality
    # Principal angles between the two subspaces.
    largest_angle_degrees: float
    mean_angle_degrees: float
    # Share of the variance that the new projection keeps which lies in the subspace of the one before.
    variance_held: float
    # In recall@10, and its standard error over the queries.
    gain: float
    gain_error: float


class Assessment(BaseModel):
    """How good the projection of a fit is, and what it changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: int
    queries: int
    fitted: Quality
    # recall@10 of all dimensions about the fit's mean, where its origin is: more axes come near to it at best.
    centred: float | None = None
    # None when there was no projection of the same encoder before.
    change: Change | None

    @property
    def advice(self) -> str:
        """One sentence for whoever decides on a rebuild."""
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
    """Where the fit of this name leaves its result."""
    return f"{lake.root}/fits/{name}.json"


def assessment_path(lake: Lake, name: str) -> str:
    """Where the assessment of the fit of this name lies."""
    return f"{lake.root}/fits/{name}-assessment.json"


def save_projection(lake: Lake, projection: Projection) -> None:
    """Keep a projection under its id; the JSON comes last, and makes it exist.

    One that is there and whole is left alone, since an index may be searched with it: a fit of the same embeddings again has
    the same numbers, but not the same last digits of the mean and the spectrum, which do not count for the id.
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
        encoder_id: whose embeddings it is to be applied to; None takes any.

    Raises:
        LensError: the lake has no such projection, another one in its place, or it is of another encoder.
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
    """Raises LensError when no fit of this name has finished."""
    try:
        return Fit.model_validate_json(lake.read_bytes(fit_path(lake, name)))
    except FileNotFoundError:
        raise LensError(f"no fit {name!r} in the lake {lake.root}: run `lens projection fit`") from None


def load_assessment(lake: Lake, name: str) -> Assessment | None:
    """The assessment of a fit; None when it was not assessed."""
    try:
        return Assessment.model_validate_json(lake.read_bytes(assessment_path(lake, name)))
    except FileNotFoundError:
        return None
