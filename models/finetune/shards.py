"""Pairs streamed from Parquet shards: shuffled, decoded, augmented and batched in bounded memory, reproducibly.

An epoch's order follows from the seed alone: the row groups are shuffled and dealt to the readers, and each reader
shuffles its rows within a buffer. So a resumed run continues with exactly the batch that would have come next.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
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
_DECODERS = 2


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
    """The shards of one split: paths on a file system that fsspec knows. Safe to pickle."""

    fs: fsspec.AbstractFileSystem
    groups: tuple[RowGroup, ...]

    @classmethod
    def open(cls, fs: fsspec.AbstractFileSystem, paths: Sequence[str]) -> Shards:
        """Read the shards' footers.

        Raises:
            LensError: there is no shard, or one is empty, not Parquet, or lacks a column.
        """
        if not paths:
            raise LensError("the pairs have no shard of this split: sample more pairs, over more days")
        groups: list[RowGroup] = []
        for path in sorted(paths):
            with _opened(fs, path) as parquet:
                lacking = set(COLUMNS) - set(parquet.schema_arrow.names)
                rows = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
            if lacking:
                raise LensError(f"shard {path} lacks the column {sorted(lacking)[0]}: sample the pairs again")
            if not sum(rows):
                raise LensError(f"shard {path} is empty: sample the pairs again")
            groups += [RowGroup(path, index, count) for index, count in enumerate(rows) if count]
        return cls(fs, tuple(groups))

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)

    def read(self, groups: Sequence[RowGroup]) -> Iterator[Pair]:
        """The pairs of some row groups, in order. Raises LensError if a shard can no longer be read."""
        for group in groups:
            with _opened(self.fs, group.path) as parquet:
                for row in parquet.read_row_group(group.index, columns=list(COLUMNS)).to_pylist():
                    yield Pair(**row)

    def head(self, count: int) -> list[Pair]:
        """The first `count` pairs, or all if there are fewer."""
        return [pair for pair, _ in zip(self.read(self.groups), range(count), strict=False)]


@contextmanager
def _opened(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[pq.ParquetFile]:
    try:
        with fs.open(path, "rb") as file, pq.ParquetFile(file) as parquet:
            yield parquet
    except (OSError, pa.ArrowInvalid) as err:
        raise LensError(f"shard {path} cannot be read ({str(err).splitlines()[0]}): sample the pairs again") from err


@dataclass(frozen=True)
class Reader:
    """One of several processes that share the shards."""

    number: int
    of: int


class PairStream(IterableDataset[Batch]):
    """An endless stream of training batches, one epoch after another, for one of several devices.

    With reading processes (`DataLoader`'s workers), each makes whole batches from its own share of the row groups, and
    they take turns.

    Args:
        shards: what is read.
        recipe: batch size, augmentation, seed, shuffle buffer and what counts as a duplicate.
        tokenize: titles to token ids.
        side: of the images, in pixels.
        device: which of the training's processes this is.
        done: batches that an earlier run of this process has already consumed.

    Raises:
        LensError: there are fewer row groups than readers, or fewer pairs than a batch.
    """

    def __init__(
        self, shards: Shards, recipe: Recipe, tokenize: Tokenize, side: int, *, device: Reader, done: int = 0
    ) -> None:
        if shards.rows < recipe.batch_size * device.of:
            raise LensError(
                f"{shards.rows} pairs are less than a batch of {recipe.batch_size} on {device.of} devices: "
                "sample more pairs, or set the recipe's batch_size lower"
            )
        self._shards = shards
        self._recipe = recipe
        self._tokenize = tokenize
        self._side = side
        self._device = device
        self._done = done
        if len(shards.groups) < device.of * max(1, recipe.readers):
            raise LensError(
                f"{device.of} devices with {recipe.readers} readers each share {len(shards.groups)} row groups: "
                "sample more pairs, or set the recipe's readers lower"
            )

    def loader(self) -> DataLoader[Batch]:
        """The stream, read by the recipe's reading processes."""
        readers = self._recipe.readers
        # Imported once for all of them: what they read with.
        multiprocessing.set_forkserver_preload(["models.finetune.towers"])
        return DataLoader(
            self,
            batch_size=None,
            num_workers=readers,
            # Children forked of this process could hang, since it has threads, and CUDA cannot be forked.
            multiprocessing_context="forkserver" if readers else None,
            prefetch_factor=4 if readers else None,
            pin_memory=torch.cuda.is_available(),
            # A generator of its own: a resumed training would get other numbers from the global one.
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        workers = worker.num_workers if worker else 1
        turn = worker.id if worker else 0
        if worker:
            torch.set_num_threads(1)
            Thread(target=_end_with_parent, daemon=True).start()
        # DataLoader asks worker 0 first: it takes the part of the one whose turn it is.
        mine = (turn + self._done) % workers
        reader = Reader(self._device.number * workers + mine, self._device.of * workers)
        taken = (self._done + workers - 1 - mine) // workers
        with ThreadPoolExecutor(_DECODERS) as threads:
            yield from self._batches(reader, taken, threads)

    def _batches(self, reader: Reader, taken: int, threads: ThreadPoolExecutor) -> Iterator[Batch]:
        size = self._recipe.batch_size
        drawn: list[tuple[int, Pair]] = []
        for numbered in self._draws(reader, taken * size):
            drawn.append(numbered)
            if len(drawn) == size:
                yield self._batch(drawn, threads)
                drawn = []

    def _draws(self, reader: Reader, skip: int) -> Iterator[tuple[int, Pair]]:
        """Endless (epoch, pair), from a position in the stream on. Whole epochs before it are not read."""
        epoch = 0
        while True:
            groups = self._order(epoch)[reader.number :: reader.of]
            rows = sum(group.rows for group in groups)
            if skip >= rows:
                skip -= rows
            else:
                rng = np.random.default_rng([self._recipe.seed, epoch, reader.number])
                for pair in _shuffled(self._shards.read(groups), self._recipe.shuffle_buffer, rng):
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
        if len(buffer) < buffer_size:
            buffer.append(pair)
            continue
        place = int(rng.integers(buffer_size))
        yield buffer[place]
        buffer[place] = pair
    yield from (buffer[place] for place in rng.permutation(len(buffer)))


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
