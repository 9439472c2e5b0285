"""An encoder's files: where they are, and the id that follows from their content. Needs no torch.

A source names an encoder: a folder, a hub's id (with @revision to pin one), a folder on Cloud Storage (gs://…), or
`pixels:N`, the plain baseline of N × N thumbnails, which has no files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download

from models.cloud_storage import cloud_storage
from models.errors import LensError

# What decides the embedding besides the weights; preprocessing is in one or the other.
_CONFIGS = ("config.json", "preprocessor_config.json", "processor_config.json")
# Weights only as safetensors: other formats can carry code. A tokenizer's file may be a SentencePiece model or text.
_MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.txt"]
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PIXELS = re.compile(r"pixels:([1-9]\d{0,2})")


def lasting_source(source: str) -> str:
    """A source that works from anywhere: a folder's absolute path, others unchanged."""
    folder = Path(source).expanduser()
    return str(folder.resolve()) if folder.is_dir() else source.rstrip("/")


def identify(source: str) -> str:
    """The id of a source's encoder. Its files are fetched if they are not here yet.

    Raises:
        LensError: no such folder and no such model within reach.
    """
    side = thumbnail_side(source)
    return f"pixels-{side}" if side else encoder_id(source, encoder_folder(source))


def thumbnail_side(source: str) -> int | None:
    """The N of `pixels:N`; None for a source that has files.

    Raises:
        LensError: no number from 1 to 999 follows.
    """
    if not source.startswith("pixels:"):
        return None
    found = _PIXELS.fullmatch(source)
    if not found:
        raise LensError(f"encoder {source!r}: write the thumbnails' side in pixels, as in pixels:16")
    return int(found.group(1))


def encoder_folder(source: str) -> Path:
    """The local folder of a model, fetched into the cache unless `source` is a folder.

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
    if source.startswith("gs://"):
        return _fetched(source)
    repo, _, revision = source.partition("@")
    # Code that a model ships is fetched from a pinned commit only; whether it runs is decided when the model is loaded.
    code = ["*.py"] if is_pinned(source) else []
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=_MODEL_FILES + code))
    except Exception as err:  # the hub's client raises errors of several libraries, validation and network alike
        raise LensError(
            f"encoder {source!r} is neither a folder nor a model that the hub gave us ({_first_line(err)}): "
            "give a folder written by save_pretrained(), or a hub id when the hub can be reached"
        ) from err


def encoder_id(source: str, folder: Path) -> str:
    """The first part of a vector space's name: a slug of the model's name and 8 digits of its content's hash.

    A name that ends in these digits is already the id, so an encoder stored under its id keeps it. The tokenizer does not
    count: the id names the space that images are embedded in.
    """
    digest = hashlib.sha256()
    own_code = ships_code(folder)
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors" or path.name in _CONFIGS or (own_code and path.suffix == ".py"):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    ending = f"-{digest.hexdigest()[:8]}"
    name = source.partition("@")[0].rstrip("/").rsplit("/", 1)[-1]
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "encoder"
    return slug if slug.endswith(ending) else f"{slug[:48]}{ending}"


def require_id(source: str, found: str, wanted: str) -> None:
    """Raise LensError if a source names another encoder than the one that is needed."""
    if found != wanted:
        raise LensError(f"encoder {source!r} is now {found}, but {wanted} is needed: restore its weights")


def is_pinned(source: str) -> bool:
    """Whether a source names one commit of a model on the hub, whose content can never change."""
    return _COMMIT.fullmatch(source.partition("@")[2]) is not None


def ships_code(folder: Path) -> bool:
    """Whether a model or its preprocessing is loaded by code that its configs name."""
    return bool(_code_of(folder))


def borrows_code(folder: Path) -> bool:
    """Whether some of that code belongs to another model ("owner/name--module.Class"), whose commit is not pinned."""
    return any("--" in name for name in _code_of(folder))


def model_type(folder: Path) -> str | None:
    """The architecture that a model's config names, in transformers' words; None when it names none."""
    found = _config(folder / "config.json").get("model_type")
    return found if isinstance(found, str) else None


def _code_of(folder: Path) -> list[str]:
    """The names of classes that a model's configs give for loading it."""
    found: list[str] = []
    for name in _CONFIGS:
        auto_map = _config(folder / name).get("auto_map")
        if isinstance(auto_map, dict):
            found += [
                str(part) for named in auto_map.values() for part in (named if isinstance(named, list) else [named])
            ]
    return found


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError):
        # Missing or not a model's: loading it will say so.
        return {}
    return config if isinstance(config, dict) else {}


def model_files(folder: Path) -> list[Path]:
    """The files of an encoder's folder: weights, configs, tokenizer. The config comes last."""
    found = [path for path in folder.iterdir() if path.is_file() and _is_model_file(path.name)]
    return sorted(found, key=lambda path: (path.name == "config.json", path.name))


def _fetched(source: str) -> Path:
    """A local copy, beside the hub's models, of a folder on Cloud Storage, fetched once per content."""
    try:
        storage = cloud_storage()
        found = storage.find(source, maxdepth=1, detail=True)
        files = {path: info for path, info in found.items() if _is_model_file(path.rsplit("/", 1)[-1])}
        if not any(path.endswith(".safetensors") for path in files):
            raise LensError(f"encoder {source!r}: no safetensors weights lie there; check the address")
        content = json.dumps([[path, info["size"], info.get("crc32c")] for path, info in sorted(files.items())])
        folder = Path(constants.HF_HOME, "listing-lens", hashlib.sha256(content.encode()).hexdigest()[:16])
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            part = Path(tempfile.mkdtemp(dir=folder.parent, suffix=".part"))
            try:
                for path in files:
                    storage.get_file(path, str(part / path.rsplit("/", 1)[-1]))
                _become(part, folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except LensError:
        raise
    except Exception as err:  # the client raises errors of several libraries, of permissions and network alike
        raise LensError(
            f"encoder {source!r} cannot be fetched ({_first_line(err)}): check the address and the credentials"
        ) from err
    return folder


def _become(part: Path, folder: Path) -> None:
    try:
        os.replace(part, folder)
    except OSError:
        # Another process fetched the same files meanwhile.
        if not folder.is_dir():
            raise


def _is_model_file(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _MODEL_FILES)


def _first_line(err: BaseException) -> str:
    text = str(err).strip()
    return text.splitlines()[0] if text else type(err).__name__
