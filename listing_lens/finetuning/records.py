"""Fine-tuned encoders in the lake: a record of each training and of its comparison, by the name of the run."""

from __future__ import annotations

import re
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from listing_lens.comparison.records import Comparison
from listing_lens.errors import LensError
from listing_lens.lake.windows import Lake

_COMPARISON = "-comparison.json"


class Finetune(BaseModel):
    """What a training left behind: the encoder that it made, from which parent, on which pairs, and how it ended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    # The dataset of pairs, by its name, its window and the hash of its content.
    pairs: str
    window: str
    pairs_fingerprint: str
    # Where the parent was loaded from; its revision, when a model hub has one.
    parent_source: str
    parent_id: str
    parent_revision: str | None
    recipe: dict[str, Any]
    encoder_source: str
    encoder_id: str
    # None when no MLflow server was configured.
    mlflow_run_id: str | None
    steps: int = Field(ge=0)
    # The step of the best checkpoint, which became the encoder; 0 if none was better than the parent, which it is then.
    best_step: int = Field(ge=0)
    # Why the training ended, as a sentence.
    stopped: str
    # Of the best checkpoint, on the validation pairs and sessions.
    metrics: dict[str, float]


def finetune_path(lake: Lake, name: str) -> str:
    """Where the training of this name leaves its record. Raises LensError when it cannot be a file's name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or f"{name}.json".endswith(_COMPARISON):
        raise LensError(f"a fine-tuning cannot be named {name!r}: use letters, digits, '-', '_' and '.'")
    return f"{lake.root}/finetunes/{name}.json"


def comparison_path(lake: Lake, name: str) -> str:
    """Where the comparison of this name's encoder is kept."""
    return f"{lake.root}/finetunes/{name}{_COMPARISON}"


def save_finetune(lake: Lake, finetune: Finetune) -> None:
    """Save a record under its name, replacing that of an earlier run."""
    lake.write_bytes(finetune_path(lake, finetune.name), finetune.model_dump_json(indent=2).encode())


def save_comparison(lake: Lake, comparison: Comparison) -> None:
    """Save a comparison under its name, replacing an earlier one."""
    lake.write_bytes(comparison_path(lake, comparison.name), comparison.model_dump_json(indent=2).encode())


def load_finetune(lake: Lake, name: str) -> Finetune:
    """Raises LensError if no training of this name has finished, or its record is unreadable."""
    remedy = f"no fine-tuning {name!r} in the lake {lake.root}: run the DAG finetune_encoder, or check the name"
    return _load(lake, finetune_path(lake, name), Finetune, remedy)


def load_comparison(lake: Lake, name: str) -> Comparison:
    """Raises LensError when the encoder of this name was not compared yet, or the record is unreadable."""
    remedy = f"fine-tuning {name!r} was not compared yet: run `python -m listing_lens.finetuning compare --name {name}`"
    return _load(lake, comparison_path(lake, name), Comparison, remedy)


def latest_comparison(lake: Lake) -> Comparison:
    """The comparison of the training that was started last. Raises LensError when there is none."""
    names = [path.rsplit("/", 1)[-1] for path in lake.files(f"{lake.root}/finetunes", _COMPARISON)]
    if not names:
        raise LensError(f"no fine-tuning in the lake {lake.root} was compared yet: run the DAG finetune_encoder")
    # A run's name starts with its time.
    return load_comparison(lake, names[-1].removesuffix(_COMPARISON))


_Record = TypeVar("_Record", bound=BaseModel)


def _load(lake: Lake, path: str, record: type[_Record], remedy: str) -> _Record:
    try:
        return record.model_validate_json(lake.read_bytes(path))
    except FileNotFoundError:
        raise LensError(remedy) from None
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise LensError(f"{path} is not a record of this version: {where}: {first['msg']}; run it again") from err
