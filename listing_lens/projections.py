"""Where projections are kept: in the lake, by id, with a record of each fit by its name."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from listing_lens.errors import LensError
from listing_lens.lake import Lake
from models.embedder import EmbedderCard
from models.projection import Projection


class Fit(BaseModel):
    """What a fit left behind: the embedder that it makes possible, and what it was fitted on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    card: EmbedderCard
    rows: int
    windows: list[str]
    explained_variance: float


def projection_folder(lake: Lake, projection_id: str) -> str:
    return f"{lake.root}/projections/{projection_id}"


def fit_path(lake: Lake, name: str) -> str:
    """Where the fit of this name leaves its result."""
    return f"{lake.root}/fits/{name}.json"


def save_projection(lake: Lake, projection: Projection) -> None:
    """Keep a projection under its id; the JSON comes last, and makes it exist."""
    tensors, about = projection.save()
    folder = projection_folder(lake, projection.projection_id)
    lake.write_bytes(f"{folder}/projection.safetensors", tensors)
    lake.write_bytes(f"{folder}/projection.json", about)


def load_projection(lake: Lake, projection_id: str) -> Projection:
    """Raises LensError when the lake has no such projection, or another one in its place."""
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
    return projection


def load_fit(lake: Lake, name: str) -> Fit:
    """Raises LensError when no fit of this name has finished."""
    try:
        return Fit.model_validate_json(lake.read_bytes(fit_path(lake, name)))
    except FileNotFoundError:
        raise LensError(f"no fit {name!r} in the lake {lake.root}: run `lens projection fit`") from None
