"""Compaction: the rows of many small windows move to a few packs, and every window stays there all the time.

A pack is a Parquet file in which each window has row groups of its own. When it is complete, each window's manifest is
replaced by one that names those, one after the other: a reader finds a window in its files or in its packs, with the same
rows. A window that is replaced meanwhile keeps what it was replaced by. Its files before, and packs that no manifest names
any more, are removed two days after, when nobody can be reading them; a compaction that dies leaves at worst such a pack.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, groupby

import pyarrow as pa

from listing_lens.errors import LensError
from listing_lens.lake.parquet import RowGroupWriter
from listing_lens.lake.window import Window
from listing_lens.lake.windows import ROWS, Lake, Manifest, Slice, outlived, outlived_packs

# What is written together: long enough to be read at full speed, short enough to be rewritten in a minute.
_PACK_BYTES = 256_000_000
# Manifests are small, and far away on Cloud Storage.
_READERS = 16


@dataclass(frozen=True)
class Stored:
    """What the windows of a dataset consist of: how many files and packs, and bytes of these that belong to a window."""

    windows: int
    files: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.windows:,} windows in {self.files:,} files, {self.bytes / 1e6:,.1f} MB"


def manifests_of(lake: Lake, dataset: str) -> dict[Window, Manifest]:
    """The manifests of all windows of a dataset, by time."""
    windows = lake.windows(dataset)
    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(windows, pool.map(lambda window: lake.manifest(dataset, window), windows), strict=True))


def stored(manifests: Mapping[Window, Manifest], sizes: Mapping[str, int]) -> Stored:
    """How a dataset is stored, by its manifests and the sizes of its files.

    Raises:
        LensError: a file that a manifest names is gone.
    """
    parts = [_files(manifest, sizes) for manifest in manifests.values()]
    return Stored(
        len(manifests), len(set(chain.from_iterable(parts))), sum(size for files in parts for size in files.values())
    )


def plan(
    manifests: Mapping[Window, Manifest], sizes: Mapping[str, int], smaller_than: int, within: Window | None = None
) -> list[tuple[Window, ...]]:
    """The windows that are worth packing, in groups that are packed together; neighbours in time stay neighbours.

    A window is packed when every file that it consists of is small, and a pack counts by what is left in it that windows
    still name. A group is packed when that more than halves its files; so a second compaction finds nothing to do.

    Args:
        manifests: of all windows of the dataset, by time.
        sizes: bytes of its files, by path below the dataset.
        smaller_than: bytes from which on a file is left as it is.
        within: only windows that overlap this one.

    Raises:
        LensError: a file that a manifest names is gone.
    """
    files = {window: _files(manifest, sizes) for window, manifest in manifests.items()}
    live: dict[str, int] = {}
    for parts in files.values():
        for path, size in parts.items():
            live[path] = live.get(path, 0) + size
    small = [
        window
        for window, parts in files.items()
        if parts and max(live[path] for path in parts) < smaller_than and (within is None or window.overlaps(within))
    ]
    return [group for group in _groups(small, files) if _worth_it(group, manifests, files)]


def compact(lake: Lake, dataset: str, windows: Sequence[Window], now: datetime) -> int:
    """Pack some windows together. Memory is bounded by a row group of each kind.

    Returns:
        How many of them are packed; the others were replaced meanwhile, and stay what they are.
    """
    manifests = [lake.manifest(dataset, window) for window in windows]
    span = Window(min(window.start for window in windows), max(window.end for window in windows))
    prefix = f"{span.name}/{Lake.new_attempt(now)}"
    with ExitStack() as stack:
        packs: dict[str, _Packs] = {}
        for manifest in manifests:
            for kind in sorted(manifest.files.keys() | manifest.packed.keys()):
                if kind not in packs:
                    packs[kind] = stack.enter_context(_Packs(lake, dataset, f"{prefix}-{kind.replace('_', '-')}"))
                packs[kind].add(manifest.window, lake.read_manifest(manifest, kind))
    # All packs are complete from here on.
    slices = {kind: pack.slices() for kind, pack in packs.items()}
    done = 0
    for manifest in manifests:
        packed = {kind: parts[manifest.window] for kind, parts in slices.items() if manifest.window in parts}
        after = manifest.model_copy(update={"files": {}, "packed": packed, "packed_at": now})
        done += lake.replace_manifest(manifest, after)
    return done


def sweep(lake: Lake, dataset: str, now: datetime) -> int:
    """Remove the files and packs of a dataset that no manifest has named for two days. Returns how many."""
    # Listed before the manifests are read: what is committed in between is then found named.
    paths = lake.sizes(dataset)
    manifests = manifests_of(lake, dataset)
    unused = [f"packs/{name}" for name in outlived_packs(_below(paths, "packs/"), manifests, now)]
    for path in _below(paths, "window="):
        window, _, name = path.partition("/")
        if outlived([name], manifests.get(Window.from_name(window)), now):
            unused.append(f"window={path}")
    for path in unused:
        lake.remove(f"{lake.root}/{dataset}/{path}")
    return len(unused)


class _Packs:
    """Writes the packs of one kind: one for each schema that the windows have."""

    def __init__(self, lake: Lake, dataset: str, prefix: str) -> None:
        self._lake = lake
        self._dataset = dataset
        self._prefix = prefix
        self._stack = ExitStack()
        self._writers: list[tuple[str, pa.Schema, RowGroupWriter]] = []
        # Window, pack's number, its row groups and how many rows they should have.
        self._placed: list[tuple[str, int, range, int]] = []

    def __enter__(self) -> _Packs:
        return self

    def __exit__(self, failed: type[BaseException] | None, *about: object) -> None:
        with self._stack:
            if failed is None:
                for _, _, writer in self._writers:
                    writer.close()

    def add(self, window: str, batches: Iterable[pa.RecordBatch]) -> None:
        """Write a window's rows as row groups of their own."""
        for schema, run in groupby(batches, key=lambda batch: batch.schema):
            number = self._number(schema)
            writer = self._writers[number][2]
            before, rows = writer.groups, 0
            for batch in run:
                writer.write(pa.Table.from_batches([batch]))
                rows += len(batch)
            writer.end_group()
            self._placed.append((window, number, range(before, writer.groups), rows))

    def slices(self) -> dict[str, list[Slice]]:
        """Where each window's rows are, once the packs are closed; windows without rows are left out.

        Raises:
            LensError: the packs do not hold as many rows as were read.
        """
        found: dict[str, list[Slice]] = {}
        for window, number, groups, rows in self._placed:
            name, _, writer = self._writers[number]
            written = [writer.metadata.row_group(n) for n in groups]
            if sum(group.num_rows for group in written) != rows:
                raise LensError(f"pack {name} does not hold the {rows} rows of window {window}: compact again")
            if rows:
                size = sum(group.column(n).total_compressed_size for group in written for n in range(group.num_columns))
                part = Slice(pack=name, row_groups=(groups.start, groups.stop), bytes=size)
                found.setdefault(window, []).append(part)
        return found

    def _number(self, schema: pa.Schema) -> int:
        """Which pack takes rows of a schema; a new one for the first of them."""
        for number, (_, other, _) in enumerate(self._writers):
            if other.equals(schema):
                return number
        name = f"{self._prefix}-{len(self._writers):05d}.parquet"
        file = self._stack.enter_context(self._lake.open_pack(self._dataset, name))
        self._writers.append((name, schema, RowGroupWriter(file, schema)))
        return len(self._writers) - 1


def _files(manifest: Manifest, sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes of a window in each file that it names, by path below the dataset."""
    found: dict[str, int] = {}
    for name in chain(*manifest.files.values()):
        path = f"window={manifest.window}/{name}"
        if path not in sizes:
            raise LensError(f"{manifest.dataset}/{path} is gone, though a manifest names it: embed the window again")
        found[path] = sizes[path]
    for part in chain(*manifest.packed.values()):
        found[f"packs/{part.pack}"] = found.get(f"packs/{part.pack}", 0) + part.bytes
    return found


def _groups(windows: Iterable[Window], files: Mapping[Window, Mapping[str, int]]) -> Iterator[tuple[Window, ...]]:
    group: list[Window] = []
    filled = 0
    for window in windows:
        group.append(window)
        filled += sum(files[window].values())
        if filled >= _PACK_BYTES:
            yield tuple(group)
            group, filled = [], 0
    if group:
        yield tuple(group)


def _worth_it(
    group: Iterable[Window], manifests: Mapping[Window, Manifest], files: Mapping[Window, Mapping[str, int]]
) -> bool:
    now = {path for window in group for path in files[window]}
    # A pack each: embeddings of another dtype are in another one.
    packs = {
        (kind, manifests[window].parameters.get("embedding_dtype") if kind == ROWS else None)
        for window in group
        for kind in manifests[window].files.keys() | manifests[window].packed.keys()
    }
    return len(now) > 2 * len(packs)


def _below(paths: Iterable[str], prefix: str) -> list[str]:
    return [path.removeprefix(prefix) for path in paths if path.startswith(prefix)]
