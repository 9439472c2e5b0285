"""The lake's layout: datasets of windows, each all or nothing.

    <root>/<dataset>/window=<start>_<end>/manifest.json            written last, in one atomic step
                                         /<attempt>-00000.parquet  …

A window exists when its manifest does, and consists of the files that the manifest names. A job writes its files under
the name of a new attempt, then the manifest; so a reader sees the old files or the new ones, on a file system as on an
object store, and a job that dies leaves the window as it was.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import IO, Any, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from listing_lens.errors import LensError
from listing_lens.window import Window, gaps
from models.cloud_storage import cloud_storage

LISTINGS = "listings"
SESSIONS = "sessions"

# What a window's files hold: its rows; listings that were sold or deleted, which have no embedding; what was set aside.
ROWS = "rows"
REMOVED = "removed"
DEAD_LETTERS = "dead_letters"

_MANIFEST = "manifest.json"
_ATTEMPT_FORMAT = "%Y%m%dT%H%M%S%fZ"
# Files of an attempt that never committed are removed by the next commit once no job can still be writing them.
_ABANDONED_AFTER = timedelta(days=2)


def embeddings(encoder_id: str) -> str:
    """The dataset that holds one encoder's embeddings."""
    return f"embeddings/{encoder_id}"


def evaluations(space: str) -> str:
    """The dataset that holds one space's evaluations."""
    return f"evaluations/{space}"


class Manifest(BaseModel):
    """What a window consists of and how it came to be."""

    model_config = ConfigDict(extra="forbid")

    dataset: str
    window: str
    # File names by what they hold: ROWS, and whatever else a job sets apart.
    files: dict[str, list[str]]
    counts: dict[str, int]
    # What relative image addresses of this window start from.
    image_root: str | None = None
    parameters: dict[str, Any] = {}
    created_at: datetime


@dataclass(frozen=True)
class Lake:
    """The lake at a folder or a gs:// prefix. Cheap to make, safe to pickle."""

    root: str

    def __post_init__(self) -> None:
        # "gs://bucket//listings" would be another place than "gs://bucket/listings".
        object.__setattr__(self, "root", self.root.rstrip("/"))

    @property
    def _in_cloud(self) -> bool:
        return self.root.startswith("gs://")

    @cached_property
    def _fs(self) -> fsspec.AbstractFileSystem:
        if self._in_cloud:
            return cloud_storage()
        if "://" in self.root:
            raise LensError(f"lake {self.root}: only folders and gs:// prefixes are supported")
        return fsspec.filesystem("file")

    @property
    def filesystem(self) -> fsspec.AbstractFileSystem:
        """Where the lake's paths are read, for readers that take an fsspec file system."""
        return self._fs

    def __getstate__(self) -> dict[str, str]:
        return {"root": self.root}

    def folder(self, dataset: str, window: Window) -> str:
        return f"{self.root}/{dataset}/window={window.name}"

    @staticmethod
    def new_attempt(now: datetime) -> str:
        """A file-name prefix that no other run of the same window uses."""
        return f"{now.astimezone(UTC):{_ATTEMPT_FORMAT}}-{secrets.token_hex(4)}"

    def windows(self, dataset: str, within: Window | None = None) -> list[Window]:
        """The complete windows of a dataset that overlap the given one, by time."""
        found = []
        for path in self._fs.find(f"{self.root}/{dataset}", maxdepth=2):
            folder, name = path.split("/")[-2:]
            if name != _MANIFEST or not folder.startswith("window="):
                continue
            window = Window.from_name(folder.removeprefix("window="))
            if within is None or window.overlaps(within):
                found.append(window)
        return sorted(found)

    def covering(self, dataset: str, wanted: Window) -> list[Window]:
        """The windows that together cover the given one.

        Raises:
            LensError: a part of it has not landed. Nothing may be computed over a gap as if it were empty.
        """
        found = self.windows(dataset, wanted)
        if missing := gaps(wanted, found):
            raise LensError(
                f"{dataset} of {missing[0]} have not landed in the lake {self.root}: "
                "wait for them, or import them with `lens catalog import`"
            )
        return found

    def manifest(self, dataset: str, window: Window) -> Manifest:
        """Raises LensError when the window is absent or its manifest unreadable."""
        path = f"{self.folder(dataset, window)}/{_MANIFEST}"
        try:
            return Manifest.model_validate_json(self.read_bytes(path))
        except FileNotFoundError:
            raise LensError(f"{dataset} of {window} are not in the lake {self.root}") from None
        except ValidationError as err:
            raise LensError(f"{path} is not a manifest of this version: {err.errors()[0]['msg']}") from err

    def image_roots(self, dataset: str, windows: Iterable[Window]) -> list[str]:
        """What the relative image addresses of some windows start from: their images may be read."""
        roots = {self.manifest(dataset, window).image_root for window in windows}
        return sorted(root for root in roots if root is not None)

    def read(
        self,
        dataset: str,
        windows: Iterable[Window],
        columns: list[str] | None = None,
        *,
        kind: str = ROWS,
        batch_rows: int = 4096,
    ) -> Iterator[pa.RecordBatch]:
        """Stream what the files of one kind hold in some windows; memory is bounded by a batch."""
        for path in self.paths(dataset, windows, kind):
            with self._fs.open(path, "rb") as file, pq.ParquetFile(file) as parquet:
                yield from parquet.iter_batches(batch_size=batch_rows, columns=columns)

    def paths(self, dataset: str, windows: Iterable[Window], kind: str = ROWS) -> list[str]:
        """The files of one kind that some windows consist of."""
        return [
            f"{self.folder(dataset, window)}/{name}"
            for window in windows
            for name in self.manifest(dataset, window).files.get(kind, [])
        ]

    def open_for_writing(self, dataset: str, window: Window, name: str) -> IO[bytes]:
        """A new file of a window; it is not part of it until a manifest names it."""
        folder = self.folder(dataset, window)
        self._fs.makedirs(folder, exist_ok=True)
        return cast("IO[bytes]", self._fs.open(f"{folder}/{name}", "wb"))

    def write_table(self, dataset: str, window: Window, table: pa.Table, now: datetime, **manifest: Any) -> Manifest:
        """Write a small window, that fits in memory, in one go."""
        name = f"{self.new_attempt(now)}-00000.parquet"
        with self.open_for_writing(dataset, window, name) as file:
            pq.write_table(table, file, compression="zstd")
        counts = manifest.pop("counts", {"rows": table.num_rows})
        return self.commit(
            Manifest(
                dataset=dataset, window=window.name, files={ROWS: [name]}, counts=counts, created_at=now, **manifest
            )
        )

    def commit(self, manifest: Manifest) -> Manifest:
        """Make the files that a manifest names the window, in one atomic step.

        The files that it replaces stay for readers that are in the middle of them. What neither manifest names is
        removed once no run can still be writing it.
        """
        window = Window.from_name(manifest.window)
        folder = self.folder(manifest.dataset, window)
        before = self._names(folder)
        replaced = self._previous_files(manifest.dataset, window)
        self.write_bytes(f"{folder}/{_MANIFEST}", manifest.model_dump_json(indent=2).encode())
        for name in before - _names_in(manifest) - replaced:
            if _is_abandoned(name, manifest.created_at):
                # Another run of this window may remove it at the same time.
                with suppress(FileNotFoundError):
                    self._fs.rm_file(f"{folder}/{name}")
        return manifest

    def _previous_files(self, dataset: str, window: Window) -> set[str]:
        try:
            return _names_in(self.manifest(dataset, window))
        except LensError:
            # There is none, or none that can be read: then its files go later, as abandoned ones.
            return set()

    def _names(self, folder: str) -> set[str]:
        if not self._fs.exists(folder):
            return set()
        self._fs.invalidate_cache(folder)
        return {path.rsplit("/", 1)[-1] for path in self._fs.find(folder, maxdepth=1)} - {_MANIFEST}

    def read_bytes(self, path: str) -> bytes:
        return bytes(self._fs.cat_file(path))

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write a small file so that it appears whole or not at all."""
        self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        if self._in_cloud:
            self._fs.pipe_file(path, data)
            return
        part = f"{path}.{secrets.token_hex(4)}.part"
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)

    def list(self, folder: str, suffix: str) -> list[str]:
        """The files of a folder whose names end so, sorted; none when there is no such folder."""
        self._fs.invalidate_cache(folder)
        if not self._fs.exists(folder):
            return []
        return sorted(path for path in self._fs.find(folder, maxdepth=1) if path.endswith(suffix))

    def exists(self, path: str) -> bool:
        return bool(self._fs.exists(path))

    def check(self) -> None:
        """Raise LensError at once when the lake cannot be reached, before a job is started that would find out late."""
        try:
            self._fs.makedirs(self.root, exist_ok=True)
            # A prefix under which nothing lies yet does not exist; its bucket does.
            self._fs.ls("/".join(self.root.split("/")[:3]) if self._in_cloud else self.root)
        except OSError as err:
            raise LensError(f"lake {self.root} cannot be reached ({err}): check LENS_LAKE") from err


def _names_in(manifest: Manifest) -> set[str]:
    return {name for names in manifest.files.values() for name in names}


def _is_abandoned(name: str, now: datetime) -> bool:
    try:
        started = datetime.strptime(name.split("-", 1)[0], _ATTEMPT_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return False
    return now - started > _ABANDONED_AFTER
