"""The stream of training batches: every pair once an epoch, the same in every run, from any place on."""

from __future__ import annotations

import io
import pickle
import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_training import RECIPE, SIDE, by_number, made_pairs, photo, write_shards

from models.errors import LensError
from models.finetune.recipe import Recipe
from models.finetune.shards import Batch, Device, Pair, PairStream, Shards

ALONE = Device(0, 1)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where shards of pairs whose titles are their numbers are kept, for all examples of a property."""
    return tmp_path_factory.mktemp("numbered")


def some_pairs(count: int) -> list[Pair]:
    image = photo(1)
    return [Pair(f"i{number}", str(number), None, image) for number in range(count)]


def shards_of(folder: Path, count: int, rows_per_group: int, shards: int = 2) -> Shards:
    name = folder / f"{count}-{rows_per_group}-{shards}"
    if name.exists():
        return Shards.open(fsspec.filesystem("file"), [str(path) for path in name.iterdir()])
    return write_shards(name, some_pairs(count), rows_per_group=rows_per_group, shards=shards)


def recipe(**changes: object) -> Recipe:
    return Recipe.model_validate({**RECIPE.model_dump(), "batch_size": 4, **changes})


def stream(shards: Shards, of: Recipe, device: Device = ALONE, *, readers: int = 0, done: int = 0) -> PairStream:
    return PairStream(shards, of, by_number, 4, device=device, readers=readers, done=done)


def numbers(batches: Sequence[Batch]) -> list[int]:
    return [int(number) for batch in batches for number in batch.tokens[:, 0]]


def equal(one: Batch, other: Batch) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("pixels", "tokens", "groups"))


class TestEpochs:
    @settings(max_examples=40)
    @given(
        rows_per_group=st.integers(1, 20), buffer=st.integers(1, 50), seed=st.integers(0, 5), epochs=st.integers(1, 3)
    )
    def test_each_draws_every_pair_once(
        self, numbered: Path, rows_per_group: int, buffer: int, seed: int, epochs: int
    ) -> None:
        of = recipe(shuffle_buffer=buffer, seed=seed)
        drawn = numbers(list(islice(stream(shards_of(numbered, 40, rows_per_group), of), 10 * epochs)))
        for epoch in range(epochs):
            assert sorted(drawn[40 * epoch : 40 * (epoch + 1)]) == list(range(40))

    def test_a_batch_may_lie_in_two(self, numbered: Path) -> None:
        drawn = numbers(list(islice(stream(shards_of(numbered, 30, 7), recipe()), 15)))
        assert sorted(drawn[:30]) == sorted(drawn[30:]) == list(range(30))

    def test_their_orders_differ(self, numbered: Path) -> None:
        drawn = numbers(list(islice(stream(shards_of(numbered, 40, 5), recipe()), 20)))
        assert drawn[:40] != drawn[40:]

    def test_another_seed_is_another_order(self, numbered: Path) -> None:
        shards = shards_of(numbered, 40, 5)
        first, again, other = (numbers(list(islice(stream(shards, recipe(seed=seed)), 10))) for seed in (0, 0, 1))
        assert first == again
        assert first != other

    def test_a_pair_looks_different_in_each(self, numbered: Path) -> None:
        batches = list(islice(stream(shards_of(numbered, 40, 40), recipe()), 20))
        seen: dict[int, list[torch.Tensor]] = {}
        for batch in batches:
            for number, pixels in zip(batch.tokens[:, 0].tolist(), batch.pixels, strict=True):
                seen.setdefault(number, []).append(pixels)
        assert not any(torch.equal(*views) for views in seen.values())


class TestGoingOn:
    @settings(max_examples=40)
    @given(rows_per_group=st.integers(1, 20), buffer=st.integers(1, 50), done=st.integers(0, 30))
    def test_the_stream_from_a_place_is_the_tail_of_the_whole(
        self, numbered: Path, rows_per_group: int, buffer: int, done: int
    ) -> None:
        shards, of = shards_of(numbered, 40, rows_per_group), recipe(shuffle_buffer=buffer)
        whole = list(islice(stream(shards, of), done + 3))
        tail = list(islice(stream(shards, of, done=done), 3))
        assert all(equal(one, other) for one, other in zip(whole[done:], tail, strict=True))


class TestDevices:
    @settings(max_examples=20)
    @given(of=st.sampled_from([2, 4]), rows_per_group=st.sampled_from([1, 2]), seed=st.integers(0, 5))
    def test_share_the_very_batches_that_one_has(self, numbered: Path, of: int, rows_per_group: int, seed: int) -> None:
        shards, shared = shards_of(numbered, 64, rows_per_group), recipe(batch_size=16, seed=seed)
        whole = list(islice(stream(shards, shared), 6))
        shares = [list(islice(stream(shards, shared, Device(number, of)), 6)) for number in range(of)]
        for batch, *parts in zip(whole, *shares, strict=True):
            assert {len(part) for part in parts} == {16 // of}
            assert sorted(numbers(parts)) == sorted(numbers([batch]))

    def test_a_pair_looks_the_same_on_each(self, numbered: Path) -> None:
        shards, shared = shards_of(numbered, 64, 1), recipe(batch_size=16)

        def looks(batches: Sequence[Batch]) -> dict[int, bytes]:
            rows = [row for batch in batches for row in zip(batch.tokens[:, 0].tolist(), batch.pixels, strict=True)]
            return {number: pixels.numpy().tobytes() for number, pixels in rows}

        shares = [next(iter(stream(shards, shared, Device(number, 2)))) for number in (0, 1)]
        assert looks(shares) == looks([next(iter(stream(shards, shared)))])

    def test_their_shares_change_from_epoch_to_epoch(self, numbered: Path) -> None:
        of = recipe(batch_size=8)
        drawn = numbers(list(islice(stream(shards_of(numbered, 40, 1), of, Device(0, 2)), 10)))
        assert set(drawn[:20]) != set(drawn[20:])


class TestReaders:
    """Real processes."""

    @pytest.mark.parametrize("done", [0, 7])
    def test_share_the_very_batches_from_any_place_on(self, numbered: Path, done: int) -> None:
        shards, of = shards_of(numbered, 48, 1), recipe(batch_size=12)
        whole = list(islice(stream(shards, of), 12))
        read = list(islice(stream(shards, of, readers=3, done=done).batches(), 12 - done))
        assert {len(parts) for parts in read} == {3}
        for batch, parts in zip(whole[done:], read, strict=True):
            assert sorted(numbers(parts)) == sorted(numbers([batch]))

    def test_are_no_more_than_there_are_lanes(self, numbered: Path) -> None:
        (batch,) = next(stream(shards_of(numbered, 40, 20), recipe(), readers=3).batches())
        assert len(batch) == 4


class TestBatches:
    @pytest.fixture
    def batch(self, tmp_path: Path) -> Batch:
        shards = write_shards(tmp_path, made_pairs(64))
        tokenize = lambda titles: torch.zeros(len(titles), 12, dtype=torch.int64)  # noqa: E731
        return next(iter(PairStream(shards, recipe(batch_size=32), tokenize, SIDE, device=ALONE)))

    def test_shapes_and_types(self, batch: Batch) -> None:
        assert (batch.pixels.shape, batch.pixels.dtype) == ((32, 3, SIDE, SIDE), torch.uint8)
        assert (batch.tokens.shape, batch.tokens.dtype) == ((32, 12), torch.int64)
        assert (batch.groups.shape, batch.groups.dtype) == ((32,), torch.int64)
        assert len(batch) == 32
        assert batch.pixels.is_contiguous()

    @given(size=st.integers(1, 40))
    def test_parts_are_the_whole(self, size: int) -> None:
        whole = Batch(torch.arange(10)[:, None], torch.arange(10)[:, None], torch.arange(10))
        parts = whole.split(size)
        assert all(len(part) <= size for part in parts)
        assert torch.equal(torch.cat([part.groups for part in parts]), whole.groups)

    def test_no_size_is_one_part(self) -> None:
        assert len(Batch(*[torch.arange(10)] * 3).split(None)) == 1

    def test_channels_are_red_green_blue(self, tmp_path: Path) -> None:
        data = io.BytesIO()
        Image.new("RGB", (20, 20), (200, 100, 20)).save(data, "JPEG", quality=95)
        shards = write_shards(tmp_path, [Pair(str(n), str(n), None, data.getvalue()) for n in range(4)])
        batch = next(iter(stream(shards, recipe(jitter=0))))
        np.testing.assert_allclose(batch.pixels.float().mean(dim=(0, 2, 3)), [200, 100, 20], atol=3)


class TestGroups:
    a, b = (Pair(item, "Red bag!", "p1", b"") for item in "ab")

    def test_by_title_is_as_it_reads(self) -> None:
        assert self.a.group("title") == Pair("c", "  red BAG", None, b"").group("title")
        assert self.a.group("title") != Pair("c", "red bags", "p1", b"").group("title")

    def test_by_product(self) -> None:
        assert self.a.group("product") == self.b.group("product")
        assert self.a.group("product") != Pair("c", "Red bag!", "p2", b"").group("product")

    def test_without_a_product_an_item_is_one_of_its_own(self) -> None:
        assert Pair("c", "x", None, b"").group("product") != Pair("d", "x", None, b"").group("product")

    def test_by_nothing_every_item_is_its_own(self) -> None:
        assert self.a.group(None) != self.b.group(None)
        assert self.a.group(None) == Pair("a", "other", None, b"").group(None)

    @given(st.text(), st.sampled_from(["title", "product", None]))
    def test_fits_int64(self, text: str, by: str | None) -> None:
        assert 0 <= Pair(text, text, text, b"").group(by) < 2**63


class TestShards:
    def test_rows_and_head(self, tmp_path: Path) -> None:
        shards = write_shards(tmp_path, made_pairs(20), rows_per_group=6, shards=1)
        assert shards.rows == 20
        assert [group.rows for group in shards.groups] == [6, 6, 6, 2]
        assert shards.head(8) == made_pairs(20)[:8]
        assert len(shards.head(100)) == 20

    def test_columns_that_are_not_needed_do_no_harm(self, tmp_path: Path) -> None:
        rows = [{**vars(pair), "category": ["A"]} for pair in made_pairs(3)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "0.parquet")
        assert Shards.open(fsspec.filesystem("file"), [str(tmp_path / "0.parquet")]).head(3) == made_pairs(3)

    def test_the_order_of_the_paths_does_not_matter(self, tmp_path: Path) -> None:
        shards = write_shards(tmp_path, made_pairs(20), shards=3)
        paths = sorted({group.path for group in shards.groups}, reverse=True)
        assert Shards.open(shards.fs, paths) == shards

    def test_go_to_another_process(self, tmp_path: Path) -> None:
        shards = write_shards(tmp_path, made_pairs(20))
        assert pickle.loads(pickle.dumps(shards)).head(20) == shards.head(20)


class Watched(LocalFileSystem):
    """A file system that tells when a shard is opened for the third time."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.opened = 0
        self.third = Event()

    def open(self, *arguments: Any, **options: Any) -> Any:
        self.opened += 1
        if self.opened == 3:
            self.third.set()
        return super().open(*arguments, **options)


class TestFetching:
    def test_the_next_group_comes_while_one_is_used(self, tmp_path: Path) -> None:
        written = write_shards(tmp_path, made_pairs(32), rows_per_group=8, shards=1)
        watched = Watched()
        shards = Shards.open(watched, sorted(written.footers))
        assert watched.opened == 1
        pairs = shards.read(shards.groups)
        next(pairs)
        assert watched.third.wait(timeout=30)
        pairs.close()

    def test_of_no_group_there_is_nothing(self, tmp_path: Path) -> None:
        assert list(write_shards(tmp_path, made_pairs(8)).read([])) == []


class TestRefusals:
    def opened(self, path: Path) -> Shards:
        return Shards.open(fsspec.filesystem("file"), [str(path)])

    def test_no_shard(self) -> None:
        with pytest.raises(LensError, match="no shard of this split: sample more pairs"):
            Shards.open(fsspec.filesystem("file"), [])

    def test_an_empty_shard(self, tmp_path: Path) -> None:
        table = pa.Table.from_pylist([vars(pair) for pair in made_pairs(2)])
        pq.write_table(table.slice(0, 0), tmp_path / "0.parquet")
        with pytest.raises(LensError, match="0.parquet is empty: sample the pairs again"):
            self.opened(tmp_path / "0.parquet")

    def test_a_missing_column(self, tmp_path: Path) -> None:
        table = pa.Table.from_pylist([vars(pair) for pair in made_pairs(2)])
        pq.write_table(table.drop_columns("title"), tmp_path / "0.parquet")
        with pytest.raises(LensError, match="0.parquet lacks the column title"):
            self.opened(tmp_path / "0.parquet")

    def test_not_parquet(self, tmp_path: Path) -> None:
        (tmp_path / "0.parquet").write_text("not found")
        with pytest.raises(LensError, match="0.parquet cannot be read .*: sample the pairs again"):
            self.opened(tmp_path / "0.parquet")

    def test_cut_off(self, tmp_path: Path) -> None:
        write_shards(tmp_path, made_pairs(4), shards=1)
        whole = (tmp_path / "0.parquet").read_bytes()
        (tmp_path / "0.parquet").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(LensError, match="0.parquet cannot be read"):
            self.opened(tmp_path / "0.parquet")

    def test_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(LensError, match="0.parquet cannot be read"):
            self.opened(tmp_path / "0.parquet")

    def test_gone_since(self, tmp_path: Path) -> None:
        shards = write_shards(tmp_path / "shards", made_pairs(8))
        shutil.rmtree(tmp_path / "shards")
        with pytest.raises(LensError, match="parquet cannot be read"):
            next(iter(stream(shards, recipe())))

    def test_fewer_pairs_than_a_batch(self, numbered: Path) -> None:
        with pytest.raises(LensError, match="40 pairs are less than a batch of 41: .*batch_size lower"):
            stream(shards_of(numbered, 40, 5), recipe(batch_size=41))

    def test_devices_that_cannot_share_a_batch(self, numbered: Path) -> None:
        with pytest.raises(LensError, match="3 devices cannot share batches of 4 pairs .* 4 lanes: .* divides 4"):
            stream(shards_of(numbered, 40, 1), recipe(), Device(0, 3))
        with pytest.raises(LensError, match="2 devices cannot share .* from 8 row groups, .* 1 lanes: .* sample more"):
            stream(shards_of(numbered, 40, 5), recipe(), Device(1, 2))
