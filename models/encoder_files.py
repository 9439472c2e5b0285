"""An encoder's files: where they lie, and the id that their content gives them. Needs no torch."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from huggingface_hub import snapshot_download

from models.errors import LensError

# What decides the embedding beside the weights; preprocessing stands in one or the other.
_CONFIGS = ("config.json", "preprocessor_config.json", "processor_config.json")
# Weights come as safetensors alone: other formats can carry code.
_MODEL_FILES = ["*.json", "*.safetensors"]


def lasting_source(source: str) -> str:
    """How an encoder can be asked for again from anywhere: a folder by its absolute path, a hub's model by its id."""
    folder = Path(source).expanduser()
    return str(folder.resolve()) if folder.is_dir() else source


def encoder_folder(source: str) -> Path:
    """The local folder of a model, fetched from the hub into its cache when `source` is no folder.

    Raises:
        LensError: no such folder and no such model within reach.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not list(folder.glob("*.safetensors")):
            raise LensError(
                f"encoder {source!r}: the folder holds no safetensors weights; save it with save_pretrained()"
            )
        return folder
    repo, _, revision = source.partition("@")
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=_MODEL_FILES))
    except Exception as err:  # the hub's client raises errors of several libraries, validation and network alike
        raise LensError(
            f"encoder {source!r} is neither a folder nor a model that the hub gave us ({_first_line(err)}): "
            "give a folder written by save_pretrained(), or a hub id when the hub can be reached"
        ) from err


def encoder_id(source: str, folder: Path) -> str:
    """The name that a vector space begins with: a slug of the model's name and 8 digits of its content's hash."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors" or path.name in _CONFIGS:
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    name = source.partition("@")[0].rstrip("/").rsplit("/", 1)[-1]
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "encoder"
    return f"{slug[:48]}-{digest.hexdigest()[:8]}"


def _first_line(err: BaseException) -> str:
    text = str(err).strip()
    return text.splitlines()[0] if text else type(err).__name__
