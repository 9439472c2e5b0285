"""The lake's layout: datasets of windows, each all or nothing.

    <root>/<dataset>/window=<start>_<end>/manifest.json            written last, in one atomic step
                                         /<attempt>-00000.parquet  …
                    /packs/<start>_<end>/<attempt>-….parquet       what many small windows of that time hold

A window exists when its manifest does, and consists of the files that the manifest names. A job writes its files under
the name of a new attempt, then the manifest; so a reader sees the old files or the new ones, on a file system as on an
object store, and a job that dies leaves the window as it was. A compaction (`listing_lens.lake.compaction`) copies the rows of
small windows to packs, and then replaces each one's manifest by one that names row groups of packs.
"""

from __future__ import annotations

import os
import secrets
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import chain, groupby
from typing import IO, Any, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from listing_lens.errors import LensError
from listing_lens.lake.parquet import ROWS_PER_GROUP, RowGroupWriter
from listing_lens.lake.window import Window, gaps
from models.cloud_storage import cloud_storage

LISTINGS = "listings"
SESSIONS = "sessions"

# What a window's files hold: its rows; listings that were sold or deleted, which have no embedding; what was set aside.
ROWS = "rows"
REMOVED = "removed"
DEAD_LETTERS = "dead_letters"

_EMBEDDINGS = "embeddings"
_PACKS = "packs"
_MANIFEST = "manifest.json"
_ATTEMPT_FORMAT = "%Y%m%dT%H%M%S%fZ"
# No job writes or reads a file for longer: what no manifest has named for that long is removed.
_LONGEST_JOB = timedelta(days=2)


def embeddings(encoder_id: str) -> str:
    """The dataset that holds one encoder's embeddings."""
    return f"{_EMBEDDINGS}/{encoder_id}"


def evaluations(space: str) -> str:
    """The dataset that holds one space's evaluations."""
    return f"evaluations/{space}"


class Slice(BaseModel):
    """The rows of one window in a pack: row groups of their own, from the first to before the last."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Below the packs of the dataset.
    pack: str
    row_groups: tuple[int, int]
    bytes: int


class Manifest(BaseModel):
    """What a window consists of and how it came to be: its rows of a kind are those of its files, and of its slices."""

    model_config = ConfigDict(extra="forbid")

    dataset: str
    window: str
    # File names by what they hold: ROWS, and whatever else a job sets apart.
    files: dict[str, list[str]]
    # By the same: where a compaction has put them.
    packed: dict[str, list[Slice]] = {}
    counts: dict[str, int]
    # What relative image addresses of this window start from.
    image_root: str | None = None
    parameters: dict[str, Any] = {}
    # When the window got its content; a compaction changes only the next.
    created_at: datetime
    packed_at: datetime | None = None

    @property
    def written_at(self) -> datetime:
        """When whatever the manifest before this one named was last named."""
        return self.packed_at or self.created_at


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
        """Stream what some windows hold of one kind; memory is bounded by a row group and a batch.

        Only files of these windows are opened, and of a pack only their row groups are read. Windows of one pack that
        follow each other share its opening, and batches.
        """
        return self._stream((self.manifest(dataset, window) for window in windows), kind, columns, batch_rows)

    def read_manifest(self, manifest: Manifest, kind: str) -> Iterator[pa.RecordBatch]:
        """Stream what a manifest names, also when the window has another one by now; it stays for two days."""
        return self._stream([manifest], kind, None, 4096)

    def _stream(
        self, manifests: Iterable[Manifest], kind: str, columns: list[str] | None, batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        places = chain.from_iterable(self._places(manifest, kind) for manifest in manifests)
        for path, found in groupby(places, key=lambda place: place[0]):
            slices = [groups for _, groups in found]
            with self._fs.open(path, "rb") as file, pq.ParquetFile(file) as parquet:
                wanted = [n for groups in slices for n in groups or range(parquet.num_row_groups)]
                for together in _streamed_together(parquet.metadata, wanted):
                    yield from parquet.iter_batches(batch_size=batch_rows, columns=columns, row_groups=together)

    def _places(self, manifest: Manifest, kind: str) -> Iterator[tuple[str, range | None]]:
        """Paths and row groups where a manifest's rows are; None is all of a file."""
        for name in manifest.files.get(kind, []):
            yield f"{self._folder_of(manifest)}/{name}", None
        for part in manifest.packed.get(kind, []):
            yield f"{self.packs(manifest.dataset)}/{part.pack}", range(*part.row_groups)

    def paths(self, dataset: str, windows: Iterable[Window], kind: str = ROWS) -> list[str]:
        """The files of one kind that some windows consist of.

        Raises:
            LensError: a window is absent, or is in a pack, which other windows share: `read` takes those apart.
        """
        paths = []
        for window in windows:
            for path, groups in self._places(self.manifest(dataset, window), kind):
                if groups is not None:
                    raise LensError(f"{dataset} of {window} are packed in {path}: read them by Lake.read")
                paths.append(path)
        return paths

    def schema(self, dataset: str, windows: Iterable[Window], kind: str = ROWS) -> pa.Schema | None:
        """The columns of one kind, as the first file of some windows has them; None where they have none."""
        for window in windows:
            for path, _ in self._places(self.manifest(dataset, window), kind):
                with self._fs.open(path, "rb") as file:
                    return pq.read_schema(file)
        return None

    def place(self, dataset: str, window: Window) -> str:
        """A name that windows have in common which are better read together: their packs', or a window's own."""
        packed = self.manifest(dataset, window).packed
        return next((part.pack.partition("/")[0] for parts in packed.values() for part in parts), window.name)

    def packs(self, dataset: str) -> str:
        """The folder of a dataset's packs."""
        return f"{self.root}/{dataset}/{_PACKS}"

    def open_for_writing(self, dataset: str, window: Window, name: str) -> IO[bytes]:
        """A new file of a window; it is not part of it until a manifest names it."""
        return self._create(f"{self.folder(dataset, window)}/{name}")

    def open_pack(self, dataset: str, name: str) -> IO[bytes]:
        """A new pack; it holds nothing of any window until a manifest names it."""
        return self._create(f"{self.packs(dataset)}/{name}")

    def _create(self, path: str) -> IO[bytes]:
        self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        return cast("IO[bytes]", self._fs.open(path, "wb"))

    def write_table(self, dataset: str, window: Window, table: pa.Table, now: datetime, **manifest: Any) -> Manifest:
        """Write a small window, that fits in memory, in one go."""
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
        """Make the files that a manifest names the window, in one atomic step.

        The files that it replaces stay for readers that are in the middle of them. What neither manifest names is
        removed once no run can still be writing or reading it.
        """
        folder = self._folder_of(manifest)
        names = self._names(folder)
        with self._only_writer(manifest.dataset):
            before = self._committed(manifest)
            self.write_bytes(f"{folder}/{_MANIFEST}", _as_json(manifest))
        unnamed = names - set(chain(*manifest.files.values()))
        for name in outlived(unnamed, before, manifest.created_at):
            self.remove(f"{folder}/{name}")
        return manifest

    def replace_manifest(self, before: Manifest, after: Manifest) -> bool:
        """Put one manifest in place of another, in one atomic step, unless the window has a third by now.

        A commit always wins: in a folder since it waits for the same lock, on Cloud Storage since the manifest is
        written on condition that the stored one is still the generation that was compared.

        Returns:
            Whether the manifest was replaced.
        """
        path = f"{self._folder_of(before)}/{_MANIFEST}"
        with self._only_writer(before.dataset):
            generation = self._fs.info(path)["generation"] if self._in_cloud else None
            # Compared after the generation was asked for: an answer that fits is of this generation, or of a later one,
            # in whose place nothing is written.
            if self._committed(before) != before:
                return False
            if generation is None:
                self.write_bytes(path, _as_json(after))
                return True
            return self._write_if_unchanged(path, _as_json(after), generation)

    def _only_writer(self, dataset: str) -> AbstractContextManager[object]:
        """Keep other processes from replacing manifests of a dataset in a folder; Cloud Storage has conditions instead."""
        if self._in_cloud:
            return nullcontext()
        folder = f"{self.root}/{dataset}"
        os.makedirs(folder, exist_ok=True)
        return FileLock(f"{folder}/.lock")

    def _write_if_unchanged(self, path: str, data: bytes, generation: str) -> bool:
        bucket, _, key = path.removeprefix("gs://").partition("/")
        upload = f"{self._fs._location}/upload/storage/v1/b/{urllib.parse.quote(bucket)}/o"
        condition = {"ifGenerationMatch": generation}
        try:
            self._fs.call("POST", upload, uploadType="media", name=key, data=data, **condition)
        except FileExistsError:
            # How gcsfs reports "412 Precondition Failed".
            return False
        return True

    def _folder_of(self, manifest: Manifest) -> str:
        return f"{self.root}/{manifest.dataset}/window={manifest.window}"

    def _committed(self, manifest: Manifest) -> Manifest | None:
        """The manifest in force of the same window; None when there is none, or none that can be read."""
        try:
            return self.manifest(manifest.dataset, Window.from_name(manifest.window))
        except LensError:
            return None

    def encoder_ids(self) -> list[str]:
        """The encoders whose embeddings the lake holds."""
        folder = f"{self.root}/{_EMBEDDINGS}"
        self._fs.invalidate_cache(folder)
        if not self._fs.exists(folder):
            return []
        found = self._fs.ls(folder, detail=False)
        return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in found)

    def sizes(self, dataset: str) -> dict[str, int]:
        """Bytes of every file of a dataset, whether a manifest names it or not, by its path below the dataset."""
        folder = f"{self.root}/{dataset}"
        self._fs.invalidate_cache(folder)
        found = self._fs.find(folder, detail=True)
        above = len(self._fs._strip_protocol(folder)) + 1
        return {path[above:]: entry["size"] for path, entry in found.items()}

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

    def remove(self, path: str) -> None:
        """Remove a file, if it is still there: another run may remove the same."""
        with suppress(FileNotFoundError):
            self._fs.rm_file(path)

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


def _streamed_together(metadata: pq.FileMetaData, wanted: Iterable[int]) -> Iterator[list[int]]:
    """Runs of row groups that are not longer, together, than one of full length.

    pyarrow keeps what it has read of every row group until the iterator over its batches ends; so each run has its own.
    """
    together: list[int] = []
    rows = 0
    for number in wanted:
        more = metadata.row_group(number).num_rows
        if together and rows + more > ROWS_PER_GROUP:
            yield together
            together, rows = [], 0
        together.append(number)
        rows += more
    if together:
        yield together


def outlived(names: Iterable[str], last: Manifest | None, now: datetime) -> list[str]:
    """Of files of a window, those that no run can be writing, and none be reading since its last manifest named them.

    Args:
        names: of files, which begin with their attempts' names; others are nobody's to remove.
        last: the window's manifest up to now; None when there is none, or none that can be read.
        now: the time, aware.
    """
    if last and now - last.written_at <= _LONGEST_JOB:
        return []
    named = set(chain(*last.files.values())) if last else set()
    return [name for name in names if name not in named and _is_abandoned(name, now)]


def outlived_packs(names: Iterable[str], manifests: Mapping[Window, Manifest], now: datetime) -> list[str]:
    """Of packs, those that no run can be writing, and none be reading since a manifest last named them.

    Args:
        names: of packs, as slices write them.
        manifests: of all windows of the dataset.
        now: the time, aware.
    """
    named = {part.pack for manifest in manifests.values() for parts in manifest.packed.values() for part in parts}
    # A pack was last named, at the latest, when a window of its time last got another manifest.
    lately = [window for window, manifest in manifests.items() if now - manifest.written_at <= _LONGEST_JOB]
    found = []
    for name in names:
        span, _, file = name.partition("/")
        if name not in named and _is_abandoned(file, now):
            covered = Window.from_name(span)
            if not any(window.overlaps(covered) for window in lately):
                found.append(name)
    return found


def _as_json(manifest: Manifest) -> bytes:
    return manifest.model_dump_json(indent=2).encode()


def _is_abandoned(name: str, now: datetime) -> bool:
    try:
        started = datetime.strptime(name.split("-", 1)[0], _ATTEMPT_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return False
    return now - started > _LONGEST_JOB
