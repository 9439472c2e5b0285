"""The lake's layout: small files by path, and datasets of windows in Parquet, each written atomically.

    <root>/<dataset>/window=<start>_<end>/manifest.json            written last, in one atomic step
                                         /<attempt>-00000.parquet  …

A window exists if its manifest does, and consists of the files that the manifest names. A job writes its files under
the name of a new attempt, then the manifest; so a reader sees either the old files or the new ones, on file systems and object
stores alike, and a job that dies leaves the window unchanged. Embeddings are in tables (`listing_lens.lake.embeddings`).
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from listing_lens.errors import LensError
from listing_lens.lake.files import flush_to_disk
from listing_lens.lake.locks import CloudObjects
from listing_lens.lake.parquet import ROWS_PER_GROUP, RowGroupWriter
from listing_lens.lake.records import LISTING_SCHEMA, SESSION_SCHEMA, Refused, parse_listings, require_columns
from listing_lens.lake.window import Window, gaps
from models.cloud_storage import cloud_storage

LISTINGS = "listings"
SESSIONS = "sessions"

# The kinds of a window's files: rows, and dead letters.
ROWS = "rows"
DEAD_LETTERS = "dead_letters"

_MANIFEST = "manifest.json"
_ATTEMPT_FORMAT = "%Y%m%dT%H%M%S%fZ"
# No job takes longer: files that no manifest has named for this long are safe to remove.
_LONGEST_JOB = timedelta(days=2)
# Threads that read manifests, which are small but on Cloud Storage have a high latency.
_READERS = 16
# The schemas of landed data, which others may write.
_LANDED = {LISTINGS: LISTING_SCHEMA, SESSIONS: SESSION_SCHEMA}
# How many invalid rows an error message lists.
_EXAMPLES = 3


def evaluations(space: str) -> str:
    """The dataset of a space's evaluations."""
    return f"evaluations/{space}"


class Manifest(BaseModel):
    """What a window consists of and how it came to be."""

    model_config = ConfigDict(extra="forbid")

    dataset: str
    window: str
    # File names by kind: ROWS, and others that a job may define.
    files: dict[str, list[str]]
    counts: dict[str, int]
    # The base address of this window's relative image addresses.
    image_root: str | None = None
    parameters: dict[str, Any] = {}
    created_at: datetime

    @property
    def identity(self) -> str:
        """Identifies this content of the window, as opposed to any earlier or later content."""
        content = f"{sorted(chain(*self.files.values()))} {self.image_root} {self.created_at.isoformat()}"
        return blake2b(content.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Lake:
    """The lake, in a folder or under a gs:// prefix. Cheap to construct, safe to pickle."""

    root: str

    def __post_init__(self) -> None:
        # "gs://bucket//listings" is not the same path as "gs://bucket/listings".
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
        """The fsspec file system of the lake's paths."""
        return self._fs

    def __getstate__(self) -> dict[str, str]:
        return {"root": self.root}

    def folder(self, dataset: str, window: Window) -> str:
        return f"{self.root}/{dataset}/window={window.name}"

    @staticmethod
    def new_attempt(now: datetime) -> str:
        """A unique name for an attempt; names sort by time."""
        return f"{now.astimezone(UTC):{_ATTEMPT_FORMAT}}-{secrets.token_hex(4)}"

    # ---- windows ----------------------------------------------------------------------------------------------------

    def windows(self, dataset: str, within: Window | None = None) -> list[Window]:
        """The complete windows of a dataset that overlap the given one, in chronological order."""
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
            LensError: a part of it has not landed. A gap must never be treated as if it were empty.
        """
        found = self.windows(dataset, wanted)
        if missing := gaps(wanted, found):
            raise LensError(
                f"{dataset} of {missing[0]} have not landed in the lake {self.root}: "
                "wait for them, or import them with `lens catalog import`"
            )
        return found

    def manifest(self, dataset: str, window: Window) -> Manifest:
        """A window's manifest. Raises LensError when the window is absent or its manifest unreadable."""
        path = f"{self.folder(dataset, window)}/{_MANIFEST}"
        try:
            return Manifest.model_validate_json(self.read_bytes(path))
        except FileNotFoundError:
            raise LensError(f"{dataset} of {window} are not in the lake {self.root}") from None
        except ValidationError as err:
            raise LensError(f"{path} is not a manifest of this version: {err.errors()[0]['msg']}") from err

    def manifests(self, dataset: str, windows: Iterable[Window]) -> dict[Window, Manifest]:
        """The manifests of the given windows, read in parallel."""
        wanted = list(windows)
        with ThreadPoolExecutor(_READERS) as pool:
            return dict(zip(wanted, pool.map(lambda window: self.manifest(dataset, window), wanted), strict=True))

    def image_roots(self, dataset: str, windows: Iterable[Window]) -> list[str]:
        """The base addresses of the windows' relative image addresses: images below them may be read."""
        roots = {manifest.image_root for manifest in self.manifests(dataset, windows).values()}
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
        """Stream the files of one kind of the given windows; memory is bounded by a row group and a batch."""
        for window in windows:
            yield from self.read_manifest(self.manifest(dataset, window), columns, kind=kind, batch_rows=batch_rows)

    def read_manifest(
        self, manifest: Manifest, columns: list[str] | None = None, *, kind: str = ROWS, batch_rows: int = 4096
    ) -> Iterator[pa.RecordBatch]:
        """Stream the files of a manifest, even if it has been replaced: they are kept for at least two days.

        Raises:
            LensError: a file of listings or sessions lacks a column, or has one of the wrong type.
        """
        for path in self._paths(manifest, kind):
            with self._fs.open(path, "rb") as file, pq.ParquetFile(file) as parquet:
                if kind == ROWS and manifest.dataset in _LANDED:
                    require_columns(parquet.schema_arrow, _LANDED[manifest.dataset], path)
                for together in _streamed_together(parquet.metadata):
                    yield from parquet.iter_batches(batch_size=batch_rows, columns=columns, row_groups=together)

    def paths(self, dataset: str, windows: Iterable[Window], kind: str = ROWS) -> list[str]:
        """The files of one kind of the given windows. Raises LensError when a window is absent."""
        return [path for window in windows for path in self._paths(self.manifest(dataset, window), kind)]

    def open_for_writing(self, dataset: str, window: Window, name: str) -> IO[bytes]:
        """A new file for a window; it becomes part of the window when a manifest names it."""
        return self.create(f"{self.folder(dataset, window)}/{name}")

    def write_table(self, dataset: str, window: Window, table: pa.Table, now: datetime, **manifest: Any) -> Manifest:
        """Write a small window, which fits in memory, in one go.

        Raises:
            LensError: listings or sessions lack a column or have one of the wrong type, or a row is invalid; nothing is
                written then.
        """
        _require_sound(dataset, window, table)
        name = f"{self.new_attempt(now)}-00000.parquet"
        with self.open_for_writing(dataset, window, name) as file:
            writer = RowGroupWriter(file, table.schema)
            writer.write(table)
            writer.close()
        counts = manifest.pop("counts", {"rows": table.num_rows})
        return self.commit(
            Manifest(
                dataset=dataset, window=window.name, files={ROWS: [name]}, counts=counts, created_at=now, **manifest
            )
        )

    def commit(self, manifest: Manifest) -> Manifest:
        """Write a window's manifest, which atomically makes the files it names the window's content.

        The files it replaces stay for readers that have already opened the window. Files that neither manifest names are
        removed once no run can still be writing or reading them.
        """
        folder = f"{self.root}/{manifest.dataset}/window={manifest.window}"
        names = self._names(folder)
        self._flush([f"{folder}/{name}" for name in chain(*manifest.files.values())])
        before = self._committed(manifest)
        self.write_bytes(f"{folder}/{_MANIFEST}", manifest.model_dump_json(indent=2).encode())
        unnamed = names - set(chain(*manifest.files.values()))
        for name in outlived(unnamed, before, manifest.created_at):
            self.remove(f"{folder}/{name}")
        return manifest

    def remove_window(self, dataset: str, window: Window) -> None:
        """Remove a window with all its files, if it is still there: from then on it has not landed."""
        folder = self.folder(dataset, window)
        self.remove(f"{folder}/{_MANIFEST}")
        self.remove_folder(folder)

    def _committed(self, manifest: Manifest) -> Manifest | None:
        """The current manifest of the same window; None if there is none, or it cannot be read."""
        try:
            return self.manifest(manifest.dataset, Window.from_name(manifest.window))
        except LensError:
            return None

    def _paths(self, manifest: Manifest, kind: str) -> list[str]:
        folder = f"{self.root}/{manifest.dataset}/window={manifest.window}"
        return [f"{folder}/{name}" for name in manifest.files.get(kind, [])]

    def _names(self, folder: str) -> set[str]:
        if not self._fs.exists(folder):
            return set()
        self._fs.invalidate_cache(folder)
        return {path.rsplit("/", 1)[-1] for path in self._fs.find(folder, maxdepth=1)} - {_MANIFEST}

    # ---- files ------------------------------------------------------------------------------------------------------

    def create(self, path: str) -> IO[bytes]:
        """Create a file, and its folder if necessary."""
        self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        return cast("IO[bytes]", self._fs.open(path, "wb"))

    def read_bytes(self, path: str) -> bytes:
        return bytes(self._fs.cat_file(path))

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write a small file atomically."""
        self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        if self._in_cloud:
            self._fs.pipe_file(path, data)
            return
        part = f"{path}.{secrets.token_hex(4)}.part"
        with open(part, "wb") as file:
            file.write(data)
        flush_to_disk([part])
        os.replace(part, path)
        flush_to_disk([os.path.dirname(path)])

    def create_once(self, path: str, data: bytes) -> bool:
        """Write a small file atomically, unless it is there already. Returns whether it was written."""
        if self._in_cloud:
            return CloudObjects().write_if(path, data, 0) is not None
        self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        part = f"{path}.{secrets.token_hex(4)}.part"
        with open(part, "wb") as file:
            file.write(data)
        flush_to_disk([part])
        try:
            # Unlike a rename, a link replaces nothing.
            os.link(part, path)
        except FileExistsError:
            return False
        finally:
            os.remove(part)
        flush_to_disk([os.path.dirname(path)])
        return True

    def put_folder(self, local: Path, folder: str) -> None:
        """Copy the files of a local folder to one of the lake."""
        for path in sorted(local.iterdir()):
            self.write_bytes(f"{folder}/{path.name}", path.read_bytes())

    def on_this_machine(self, folder: str, cache: Path) -> Path:
        """A folder of the lake whose content never changes, where libraries can open its files.

        Args:
            folder: its path in the lake.
            cache: a local folder that keeps what was fetched, once per machine.
        """
        if not self._in_cloud:
            return Path(folder)
        copy = cache / blake2b(folder.encode(), digest_size=8).hexdigest()
        if not copy.is_dir():
            cache.mkdir(parents=True, exist_ok=True)
            part = Path(tempfile.mkdtemp(dir=cache, suffix=".part"))
            try:
                for path in self.files(folder, ""):
                    self._fs.get_file(path, str(part / path.rsplit("/", 1)[-1]))
                os.replace(part, copy)
            except OSError:
                # Another process fetched the same files meanwhile.
                if not copy.is_dir():
                    raise
            finally:
                shutil.rmtree(part, ignore_errors=True)
        return copy

    def _flush(self, paths: Iterable[str]) -> None:
        """Make files durable before a manifest names them; object stores do so by themselves."""
        if not self._in_cloud:
            flush_to_disk(paths)

    def files(self, folder: str, suffix: str) -> list[str]:
        """The files in a folder with the given suffix, sorted; none if there is no such folder."""
        self._fs.invalidate_cache(folder)
        if not self._fs.exists(folder):
            return []
        return sorted(path for path in self._fs.find(folder, maxdepth=1) if path.endswith(suffix))

    def folders(self, folder: str) -> list[str]:
        """The names of the entries of a folder, sorted; none if there is no such folder."""
        self._fs.invalidate_cache(folder)
        if not self._fs.exists(folder):
            return []
        return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in self._fs.ls(folder, detail=False))

    def size(self, folder: str) -> int:
        """The total size of all files below a folder, in bytes."""
        self._fs.invalidate_cache(folder)
        return sum(entry["size"] for entry in self._fs.find(folder, detail=True).values())

    def remove(self, path: str) -> None:
        """Remove a file, if it is still there: another run may have removed it."""
        with suppress(FileNotFoundError):
            self._fs.rm_file(path)

    def remove_folder(self, folder: str) -> None:
        """Remove a folder with all its contents, if it is still there."""
        with suppress(FileNotFoundError):
            self._fs.rm(folder, recursive=True)

    def exists(self, path: str) -> bool:
        return bool(self._fs.exists(path))

    def check(self) -> None:
        """Check that the lake can be used, before a job starts and would find out late.

        Raises:
            LensError: it cannot be reached, or has a layout that this version does not support.
        """
        try:
            self._fs.makedirs(self.root, exist_ok=True)
            # A prefix without objects does not exist; its bucket does.
            self._fs.ls("/".join(self.root.split("/")[:3]) if self._in_cloud else self.root)
        except OSError as err:
            raise LensError(f"lake {self.root} cannot be reached ({err}): check LENS_LAKE") from err
        for encoder_id in self.folders(f"{self.root}/embeddings"):
            if any(name.startswith("window=") for name in self.folders(f"{self.root}/embeddings/{encoder_id}")):
                raise LensError(
                    f"lake {self.root} holds embeddings of {encoder_id} by window, of a layout before this version's: "
                    f"remove {self.root}/embeddings and embed again, or set LENS_LAKE to another place"
                )


def is_abandoned(attempt: str, now: datetime) -> bool:
    """Whether a name begins with an attempt so old that its run cannot still be writing."""
    try:
        started = datetime.strptime(attempt.split("-", 1)[0], _ATTEMPT_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return False
    return now - started > _LONGEST_JOB


def outlived(names: Iterable[str], last: Manifest | None, now: datetime) -> list[str]:
    """The files of a window that no run can still be writing, or reading through its previous manifest.

    Args:
        names: file names; only those that begin with an attempt's name can be removed.
        last: the window's previous manifest; None if there is none, or it cannot be read.
        now: the current time, timezone-aware.
    """
    if last and now - last.created_at <= _LONGEST_JOB:
        return []
    named = set(chain(*last.files.values())) if last else set()
    return [name for name in names if name not in named and is_abandoned(name, now)]


def _require_sound(dataset: str, window: Window, table: pa.Table) -> None:
    """Reject data that could not be used, before it lands."""
    if dataset in _LANDED:
        require_columns(table.schema, _LANDED[dataset], f"{dataset} of {window}")
    if dataset != LISTINGS:
        return
    refused = [row for batch in table.to_batches() for row in parse_listings(batch, window) if isinstance(row, Refused)]
    if refused:
        examples = "; ".join(f"item {row.item_id[:40]!r}: {row.reason}" for row in refused[:_EXAMPLES])
        raise LensError(f"{len(refused)} of {len(table)} listings of {window} are invalid: {examples}")


def _streamed_together(metadata: pq.FileMetaData) -> Iterator[list[int]]:
    """Runs of consecutive row groups that together are no longer than one full row group.

    pyarrow keeps all row groups that it has read until its batch iterator ends; so each run gets its own iterator.
    """
    together: list[int] = []
    rows = 0
    for number in range(metadata.num_row_groups):
        more = metadata.row_group(number).num_rows
        if together and rows + more > ROWS_PER_GROUP:
            yield together
            together, rows = [], 0
        together.append(number)
        rows += more
    if together:
        yield together
