"""Pairs streamed from Parquet shards: shuffled, decoded, augmented and batched in bounded memory, reproducibly.

A batch follows from the seed alone. Each epoch's row groups are shuffled and dealt to lanes, a lane shuffles its rows within a
buffer, and every batch takes equally many pairs from each lane. Devices and their reading processes share the lanes. So a
resumed training continues with exactly the batch that would have come next, also on another number of devices or readers.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import islice
from threading import Thread

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from models.errors import LensError
from models.finetune.augmentation import augment
from models.finetune.recipe import Recipe
from models.pairs.titles import title_key

COLUMNS = ("item_id", "title", "product_id", "image")

# Titles → (n, length) int64, padded to the full length.
Tokenize = Callable[[list[str]], torch.Tensor]
_DECODERS, _OPENERS = 2, 16
# As many devices as could share a batch. A lane has several row groups, so that lanes are about equally long: the pairs of a
# shorter one would come more often.
_MOST_LANES, _GROUPS_PER_LANE = 64, 8


@dataclass(frozen=True)
class Pair:
    """An image, encoded, and its title."""

    item_id: str
    title: str
    product_id: str | None
    image: bytes

    def group(self, by: str | None) -> int:
        """A 63-bit number that pairs of the same thing share."""
        name = f"item {self.item_id}"
        if by == "title":
            name = f"title {title_key(self.title)}"
        elif by == "product" and self.product_id is not None:
            name = f"product {self.product_id}"
        return _number(name) >> 1


@dataclass(frozen=True)
class Batch:
    """Pairs as a model's input.

    Attributes:
        pixels: (n, 3, side, side) uint8.
        tokens: (n, length) int64.
        groups: (n,) int64; equal for pairs of the same thing.
    """

    pixels: torch.Tensor
    tokens: torch.Tensor
    groups: torch.Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device) -> Batch:
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in (self.pixels, self.tokens, self.groups)))

    def pin_memory(self) -> Batch:
        """For DataLoader, so that copies to a GPU do not block."""
        return Batch(*(tensor.pin_memory() for tensor in (self.pixels, self.tokens, self.groups)))

    @classmethod
    def concatenate(cls, parts: Sequence[Batch]) -> Batch:
        """The pairs of all parts, in order."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("pixels", "tokens", "groups")))

    def split(self, size: int | None) -> list[Batch]:
        """Parts of at most the given size."""
        tensors = (self.pixels, self.tokens, self.groups)
        return [Batch(*parts) for parts in zip(*(tensor.split(size or len(self)) for tensor in tensors), strict=True)]


@dataclass(frozen=True)
class RowGroup:
    """A part of a shard that is read in one go."""

    path: str
    index: int
    rows: int


@dataclass(frozen=True)
class Shards:
    """The shards of one split: paths on a file system that fsspec knows, with their footers. Safe to pickle."""

    fs: fsspec.AbstractFileSystem
    groups: tuple[RowGroup, ...]
    footers: Mapping[str, pq.FileMetaData]

    @classmethod
    def open(cls, fs: fsspec.AbstractFileSystem, paths: Sequence[str]) -> Shards:
        """Read the shards' footers.

        Raises:
            LensError: there is no shard, or one is empty, not Parquet, or lacks a column.
        """
        if not paths:
            raise LensError("the pairs have no shard of this split: sample more pairs, over more days")
        groups: list[RowGroup] = []
        with ThreadPoolExecutor(_OPENERS) as threads:
            footers = dict(zip(sorted(paths), threads.map(partial(_footer, fs), sorted(paths)), strict=True))
        for path, footer in footers.items():
            if lacking := set(COLUMNS) - set(footer.schema.to_arrow_schema().names):
                raise LensError(f"shard {path} lacks the column {sorted(lacking)[0]}: sample the pairs again")
            if not footer.num_rows:
                raise LensError(f"shard {path} is empty: sample the pairs again")
            rows = (footer.row_group(index).num_rows for index in range(footer.num_row_groups))
            groups += [RowGroup(path, index, count) for index, count in enumerate(rows) if count]
        return cls(fs, tuple(groups), footers)

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)

    def read(self, groups: Sequence[RowGroup]) -> Iterator[Pair]:
        """The pairs of some row groups, in order; the next one is fetched while one is used.

        Raises:
            LensError: a shard can no longer be read.
        """
        with ThreadPoolExecutor(1) as thread:
            following: Future[pa.Table] | None = None
            for group in groups:
                current, following = following, thread.submit(self._fetch, group)
                if current:
                    yield from _pairs(current.result())
            if following:
                yield from _pairs(following.result())

    def _fetch(self, group: RowGroup) -> pa.Table:
        with _opened(self.fs, group.path, self.footers[group.path]) as parquet:
            return parquet.read_row_group(group.index, columns=list(COLUMNS))

    def head(self, count: int) -> list[Pair]:
        """The first `count` pairs, or all if there are fewer."""
        return [pair for pair, _ in zip(self.read(self.groups), range(count), strict=False)]


def _pairs(rows: pa.Table) -> Iterator[Pair]:
    return (Pair(**row) for row in rows.to_pylist())


def _footer(fs: fsspec.AbstractFileSystem, path: str) -> pq.FileMetaData:
    with _opened(fs, path) as parquet:
        return parquet.metadata


@contextmanager
def _opened(
    fs: fsspec.AbstractFileSystem, path: str, footer: pq.FileMetaData | None = None
) -> Iterator[pq.ParquetFile]:
    try:
        with fs.open(path, "rb") as file, pq.ParquetFile(file, metadata=footer) as parquet:
            yield parquet
    except (OSError, pa.ArrowInvalid) as err:
        raise LensError(f"shard {path} cannot be read ({str(err).splitlines()[0]}): sample the pairs again") from err


@dataclass(frozen=True)
class Device:
    """One of several devices that share each batch, each with a process of its own."""

    number: int
    of: int


class PairStream(IterableDataset[Batch]):
    """An endless stream of training batches, one epoch after another: of each batch, the share of one device.

    Args:
        shards: what is read.
        recipe: batch size, augmentation, seed, shuffle buffer and what counts as a duplicate.
        tokenize: titles to token ids.
        side: of the images, in pixels.
        device: which of the training's devices this is.
        readers: processes that read for it; 0: this one does. There are no more than lanes.
        done: batches that an earlier run has already consumed.

    Raises:
        LensError: the devices cannot share a batch, or there are fewer pairs than one.
    """

    def __init__(
        self,
        shards: Shards,
        recipe: Recipe,
        tokenize: Tokenize,
        side: int,
        *,
        device: Device,
        readers: int = 0,
        done: int = 0,
    ) -> None:
        if shards.rows < recipe.batch_size:
            raise LensError(
                f"{shards.rows} pairs are less than a batch of {recipe.batch_size}: sample more pairs, or set the recipe's "
                "batch_size lower"
            )
        lanes = _lanes(len(shards.groups), recipe.batch_size)
        if lanes % device.of:
            raise LensError(
                f"{device.of} devices cannot share batches of {recipe.batch_size} pairs from {len(shards.groups)} row groups, "
                f"which are read in {lanes} lanes: use a number of devices that divides {lanes}, or sample more pairs"
            )
        self._shards = shards
        self._recipe = recipe
        self._tokenize = tokenize
        self._side = side
        self._lanes = lanes
        self._mine = range(device.number, lanes, device.of)
        self._readers = min(readers, len(self._mine))
        self._done = done

    def batches(self) -> Iterator[tuple[Batch, ...]]:
        """This device's share of each batch, in parts, one of each reader. Reading begins at once."""
        # Imported once for all of them: what they read with.
        multiprocessing.set_forkserver_preload(["models.finetune.towers"])
        loader = DataLoader(
            self,
            batch_size=None,
            num_workers=self._readers,
            # Children forked of this process could hang, since it has threads, and CUDA cannot be forked.
            multiprocessing_context="forkserver" if self._readers else None,
            prefetch_factor=4 if self._readers else None,
            pin_memory=torch.cuda.is_available(),
            # A generator of its own: a resumed training would get other numbers from the global one.
            generator=torch.Generator(),
        )
        # DataLoader asks its workers in turn, so that as many parts as there are readers are a batch.
        parts = iter(loader)
        return zip(*[parts] * max(1, self._readers), strict=True)

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        lanes = self._mine
        if worker:
            lanes = lanes[worker.id :: worker.num_workers]
            torch.set_num_threads(1)
            Thread(target=_end_with_parent, daemon=True).start()
        size = self._recipe.batch_size // self._lanes
        streams = [self._draws(lane, self._done * size) for lane in lanes]
        with ThreadPoolExecutor(_DECODERS) as threads:
            while True:
                yield self._batch([pair for stream in streams for pair in islice(stream, size)], threads)

    def _draws(self, lane: int, skip: int) -> Iterator[tuple[int, Pair]]:
        """Endless (epoch, pair), from a position in a lane on. Whole epochs before it are not read."""
        epoch = 0
        while True:
            groups = self._order(epoch)[lane :: self._lanes]
            rows = sum(group.rows for group in groups)
            if skip >= rows:
                skip -= rows
            else:
                rng = np.random.default_rng([self._recipe.seed, epoch, lane])
                for pair in _shuffled(self._shards.read(groups), self._recipe.shuffle_buffer // self._lanes, rng):
                    if skip:
                        skip -= 1
                    else:
                        yield epoch, pair
            epoch += 1

    def _order(self, epoch: int) -> list[RowGroup]:
        rng = np.random.default_rng([self._recipe.seed, epoch])
        return [self._shards.groups[place] for place in rng.permutation(len(self._shards.groups))]

    def _batch(self, drawn: list[tuple[int, Pair]], threads: ThreadPoolExecutor) -> Batch:
        pixels = np.stack(list(threads.map(self._view, drawn)))
        return Batch(
            torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
            self._tokenize([pair.title for _, pair in drawn]),
            torch.tensor([pair.group(self._recipe.duplicates_by) for _, pair in drawn]),
        )

    def _view(self, drawn: tuple[int, Pair]) -> np.ndarray:
        epoch, pair = drawn
        # Seeded by the pair and the epoch, so that it does not matter which thread or process augments it.
        rng = np.random.default_rng([self._recipe.seed, epoch, _number(pair.item_id)])
        return augment(decode(pair.image), self._side, self._recipe, rng)


def _lanes(groups: int, batch_size: int) -> int:
    """How many lanes there are: the same on every machine, and a divisor of the batch size."""
    most = max(1, min(_MOST_LANES, groups // _GROUPS_PER_LANE))
    return max(lanes for lanes in range(1, most + 1) if batch_size % lanes == 0)


def _end_with_parent() -> None:
    """End this reading process when the training's has ended: DataLoader itself only watches the process that forked it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def decode(image: bytes) -> Image.Image:
    """Decode an image of a shard; sampling has made sure that it can be decoded."""
    return Image.open(BytesIO(image)).convert("RGB")


def _shuffled(pairs: Iterator[Pair], buffer_size: int, rng: np.random.Generator) -> Iterator[Pair]:
    """All pairs, each taken at random from a buffer."""
    buffer: list[Pair] = []
    for pair in pairs:
        if len(buffer) < max(1, buffer_size):
            buffer.append(pair)
            continue
        place = int(rng.integers(len(buffer)))
        yield buffer[place]
        buffer[place] = pair
    yield from (buffer[place] for place in rng.permutation(len(buffer)))


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
