"""A Triton model repository: versions of listing-embedder as a Triton Inference Server loads them.

    listing-embedder/config.pbtxt
    listing-embedder/7/card.json        what the version is
    listing-embedder/7/model.onnx       the graph; its weights are in model.onnx.data

A version has the number that it has in MLflow. Triton's config is one for all versions, and is written from those that are
there: it tells the card of each, so whoever asks finds the version of a space without MLflow.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict

from listing_lens.embedding.embedder import Embedder
from listing_lens.errors import LensError
from models.embedder import EMBEDDING, MODEL, PIXELS, SPACE, EmbedderCard
from models.encoders.runtime import Precision

CONFIG = "config.pbtxt"
GRAPH = "model.onnx"
_CARD = "card.json"
# How long a request that does not say so waits in Triton's queue.
_LONGEST_WAIT_S = 60
# A version's card is a parameter of the config: this and the version's number.
_CARD_PARAMETER = "card."


class ExportedVersion(BaseModel):
    """A version in the repository.

    Attributes:
        version: its number in MLflow, and in Triton.
        card: the embedder.
        image_shape: (3, height, width) of a prepared image.
        precision: of the weights.
        least_cosine: with the vectors that the embedder computes itself, when it was exported.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    card: EmbedderCard
    image_shape: tuple[int, int, int]
    precision: Precision
    least_cosine: float


@dataclass(frozen=True)
class Instances:
    """How Triton computes a version.

    Attributes:
        kind: on its GPUs, on the processor, or on GPUs if there are any.
        count: copies per GPU, or on the processor.
        most_together: images in a batch.
        most_waiting: requests that may wait; Triton refuses more.
    """

    kind: Literal["auto", "gpu", "cpu"] = "auto"
    count: int = 1
    most_together: int = 64
    most_waiting: int = 256


def export_version(
    version: int,
    card: EmbedderCard,
    embedder: Embedder,
    repository: Path,
    precision: Precision = Precision.FLOAT32,
    instances: Instances | None = None,
) -> ExportedVersion:
    """Write a version of listing-embedder to a repository, in place of what lies there by that number, and the config anew.

    Whatever fails, the repository stays as it was.

    Args:
        version: its number in MLflow.
        card, embedder: what is registered by that number; on the CPU, in float32.
        repository: the folder; made if it is not there.
        precision: of the weights.
        instances: how Triton computes all versions.

    Raises:
        LensError: the embedder cannot be exported, or another version of the same space lies there.
    """
    # ONNX and torch take seconds to import.
    from models.onnx_embedder import export_onnx

    model = repository / MODEL
    for other in exported_versions(repository):
        if other.card.space == card.space and other.version != version:
            raise LensError(
                f"{model / str(other.version)} is of space {card.space} too: remove that folder, or export to another"
            )
    side = embedder.encoder.image_side
    model.mkdir(parents=True, exist_ok=True)
    # Triton overlooks folders whose name is no number.
    part = model / f"part-{version}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        least = export_onnx(embedder.encoder, embedder.projection, card.space, part / GRAPH, precision)
        shape = _image_shape(embedder, side)
        exported = ExportedVersion(
            version=version, card=card, image_shape=shape, precision=precision, least_cosine=least
        )
        (part / _CARD).write_text(exported.model_dump_json(indent=2))
        shutil.rmtree(model / str(version), ignore_errors=True)
        part.rename(model / str(version))
    finally:
        shutil.rmtree(part, ignore_errors=True)
    write_config(repository, instances or Instances())
    return exported


def exported_versions(repository: Path) -> list[ExportedVersion]:
    """The versions in a repository, by number."""
    cards = (repository / MODEL).glob(f"[0-9]*/{_CARD}")
    found = [ExportedVersion.model_validate_json(path.read_bytes()) for path in cards]
    return sorted(found, key=lambda exported: exported.version)


def write_config(repository: Path, instances: Instances) -> None:
    """Write Triton's config for the versions that are in the repository."""
    path = repository / MODEL / CONFIG
    part = path.with_suffix(".part")
    part.write_text(config_of(exported_versions(repository), instances), encoding="utf-8")
    os.replace(part, path)


def config_of(versions: list[ExportedVersion], instances: Instances) -> str:
    """Triton's config for some versions, in protobuf's text format."""
    shapes = {exported.image_shape for exported in versions}
    dims = {exported.card.dims for exported in versions}
    # Where the versions differ, Triton takes any size, and the graph refuses the wrong one.
    image = ", ".join(map(str, *shapes)) if len(shapes) == 1 else "3, -1, -1"
    vector = str(*dims) if len(dims) == 1 else "-1"
    cards = "\n".join(
        f"parameters {{ key: {_text(f'{_CARD_PARAMETER}{exported.version}')} "
        f"value {{ string_value: {_text(exported.card.model_dump_json())} }} }}"
        for exported in versions
    )
    return f"""\
# Written by `lens triton export`, for the versions that lie here.
name: "{MODEL}"
backend: "onnxruntime"
max_batch_size: {instances.most_together}
input {{ name: "{PIXELS}" data_type: TYPE_UINT8 dims: [ {image} ] }}
output {{ name: "{EMBEDDING}" data_type: TYPE_FP32 dims: [ {vector} ] }}
output {{ name: "{SPACE}" data_type: TYPE_STRING dims: [ 1 ] }}
# While an alias moves, the old space is searched until the new one is loaded.
version_policy {{ all {{ }} }}
instance_group {{ count: {instances.count} kind: KIND_{instances.kind.upper()} }}
# Requests that wait for an instance are computed together; what nobody waits for any more is not begun. A request may say that
# it waits for less than the default, not for more.
dynamic_batching {{
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: {_LONGEST_WAIT_S * 1_000_000}
    allow_timeout_override: true
    max_queue_size: {instances.most_waiting}
  }}
}}
{cards}
"""


def cards_of(parameters: dict[str, dict[str, str]]) -> dict[int, EmbedderCard]:
    """The cards by version, of the parameters in a config as Triton tells them."""
    return {
        int(name.removeprefix(_CARD_PARAMETER)): EmbedderCard.model_validate_json(value["string_value"])
        for name, value in parameters.items()
        if name.startswith(_CARD_PARAMETER)
    }


def _image_shape(embedder: Embedder, side: int) -> tuple[int, int, int]:
    channels, height, width = embedder.encoder.prepare(Image.new("RGB", (side, side))).shape
    return channels, height, width


def _text(value: str) -> str:
    """A string in protobuf's text format, which escapes as JSON does."""
    return json.dumps(value, ensure_ascii=False)
