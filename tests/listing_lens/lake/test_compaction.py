"""Compaction: whatever is committed, replaced, packed or killed, in whatever order, a window reads as what was last committed.

Cases run in a folder and on the emulated Cloud Storage. The emulator writes whatever the condition, so there the
condition itself is looked at on its way.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from listing_lens import lake as lake_module
from listing_lens.errors import LensError
from listing_lens.lake.compaction import compact, manifests_of, plan, stored, sweep
from listing_lens.lake.parquet import RowGroupWriter
from listing_lens.lake.records import embedding_schema
from listing_lens.lake.window import Window
from listing_lens.lake.windows import DEAD_LETTERS, REMOVED, ROWS, Lake, Manifest

START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 2, 1, tzinfo=UTC)
LATER = NOW + timedelta(days=3)
DATASET = "embeddings/small-12345678"
KINDS = (ROWS, REMOVED, DEAD_LETTERS)


def hour(n: int) -> Window:
    return Window(START + timedelta(hours=n), START + timedelta(hours=n + 1))


def table(*numbers: int) -> pa.Table:
    return pa.table({"number": pa.array(numbers, pa.int64())})


def commit(lake: Lake, window: Window, now: datetime, **rows: pa.Table) -> Manifest:
    """A window as a job writes it: a file of its own a kind."""
    attempt = lake.new_attempt(now)
    files = {}
    for kind, rows_of_kind in rows.items():
        name = f"{attempt}-{kind}.parquet"
        with lake.open_for_writing(DATASET, window, name) as file:
            writer = RowGroupWriter(file, rows_of_kind.schema)
            writer.write(rows_of_kind)
            writer.close()
        files[kind] = [name]
    counts = {kind: len(rows_of_kind) for kind, rows_of_kind in rows.items()}
    return lake.commit(Manifest(dataset=DATASET, window=window.name, files=files, counts=counts, created_at=now))


def numbers(lake: Lake, *windows: Window, kind: str = ROWS) -> list[int]:
    return [n for batch in lake.read(DATASET, windows, kind=kind) for n in batch.column("number").to_pylist()]


def planned(lake: Lake, within: Window | None = None, smaller_than: int = 10**6) -> list[tuple[Window, ...]]:
    manifests = manifests_of(lake, DATASET)
    return plan(manifests, lake.sizes(DATASET), smaller_than, within)


def compact_all(lake: Lake, now: datetime = LATER) -> int:
    return sum(compact(lake, DATASET, group, now) for group in planned(lake))


def own_files(lake: Lake, window: Window) -> set[str]:
    prefix = f"window={window.name}/"
    paths = lake.sizes(DATASET)
    return {path.removeprefix(prefix) for path in paths if path.startswith(prefix)} - {"manifest.json"}


def packs(lake: Lake) -> set[str]:
    return {path.removeprefix("packs/") for path in lake.sizes(DATASET) if path.startswith("packs/")}


class Watched:
    """A file system that tells `see` of each file that is opened, written at once or removed, before it happens."""

    def __init__(self, fs: fsspec.AbstractFileSystem, see: Callable[[str, str], None]) -> None:
        self._watched = fs
        self._see = see

    def __getattr__(self, name: str) -> Any:
        return getattr(self._watched, name)

    def open(self, path: str, mode: str = "rb") -> Any:
        self._see(mode, path)
        return self._watched.open(path, mode)

    def rm_file(self, path: str) -> None:
        self._see("rm", path)
        self._watched.rm_file(path)


@contextmanager
def watched(lake: Lake, see: Callable[[str, str], None]) -> Iterator[None]:
    """Tell `see` of what a lake in a folder does with files: opens them (rb, wb), replaces a manifest (mv), removes (rm)."""

    def replace(part: str, path: str) -> None:
        see("mv", path)
        real(part, path)

    real, fs = lake_module.os.replace, lake._fs
    lake.__dict__["_fs"] = Watched(fs, see)
    try:
        with mock.patch.object(lake_module.os, "replace", replace):
            yield
    finally:
        lake.__dict__["_fs"] = fs


@pytest.fixture(params=["folder", "gs"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    if request.param == "folder":
        return Lake(str(tmp_path / "lake"))
    return Lake(f"gs://{request.getfixturevalue('bucket').name}/some/lake")


@pytest.fixture
def folder(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


class TestCompacting:
    def test_leaves_every_window_what_it_was(self, lake: Lake) -> None:
        for n in range(4):
            commit(lake, hour(n), NOW, rows=table(n, 10 * n), removed=table(-n))
        commit(lake, hour(4), NOW)
        before = manifests_of(lake, DATASET)
        assert compact_all(lake) == 4
        after = manifests_of(lake, DATASET)
        assert list(after) == [hour(n) for n in range(5)]
        for window in after:
            kept = {"files", "packed", "packed_at"}
            assert after[window].model_dump(exclude=kept) == before[window].model_dump(exclude=kept)
        for n in range(4):
            assert numbers(lake, hour(n)) == [n, 10 * n]
            assert numbers(lake, hour(n), kind=REMOVED) == [-n]
        assert numbers(lake, hour(4)) == []
        assert numbers(lake, *map(hour, range(5))) == [0, 0, 1, 10, 2, 20, 3, 30]

    def test_takes_fewer_files(self, lake: Lake) -> None:
        for n in range(10):
            commit(lake, hour(n), NOW, rows=table(n), dead_letters=table(n))
        was = stored(manifests_of(lake, DATASET), lake.sizes(DATASET))
        compact_all(lake)
        now = stored(manifests_of(lake, DATASET), lake.sizes(DATASET))
        assert (was.windows, was.files) == (10, 20)
        assert (now.windows, now.files) == (10, 2)
        assert 0 < now.bytes < was.bytes

    def test_keeps_types_and_embeddings_to_the_bit(self, lake: Lake) -> None:
        schemas = [
            embedding_schema(8, dtype).field("embedding") for dtype in ("float32", "float16", "float16", "float32")
        ]
        written = {}
        for n, field in enumerate(schemas):
            rows = np.random.default_rng(n).standard_normal((5, 8)).astype(field.type.value_type.to_pandas_dtype())
            column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), type=field.type)
            written[hour(n)] = pa.Table.from_arrays([column], schema=pa.schema([field]))
            commit(lake, hour(n), NOW, rows=written[hour(n)])
        assert compact_all(lake) == 4
        for window, rows in written.items():
            assert pa.Table.from_batches(lake.read(DATASET, [window])).equals(rows)
        # Whatever their order, windows of one type share a pack.
        assert len(packs(lake)) == 2

    def test_twice_does_nothing_more(self, lake: Lake) -> None:
        for n in range(4):
            commit(lake, hour(n), NOW, rows=table(n), removed=table(n))
        compact_all(lake)
        before = lake.sizes(DATASET)
        assert planned(lake) == []
        assert lake.sizes(DATASET) == before

    def test_twice_does_nothing_more_for_windows_of_two_types(self, lake: Lake) -> None:
        for n in range(6):
            dtype = ("float32", "float16")[n % 2]
            field = embedding_schema(4, dtype).field("embedding")
            numbers = pa.array(np.ones(4).astype(dtype))
            column = pa.FixedSizeListArray.from_arrays(numbers, type=field.type)
            written = commit(lake, hour(n), NOW, rows=pa.Table.from_arrays([column], schema=pa.schema([field])))
            lake.commit(written.model_copy(update={"parameters": {"embedding_dtype": dtype}}))
        assert compact_all(lake) == 6
        assert planned(lake) == []

    def test_takes_what_is_left_in_small_packs_together_with_new_windows(self, lake: Lake) -> None:
        for n in range(3):
            commit(lake, hour(n), NOW, rows=table(n))
        compact_all(lake, NOW)
        for n in range(3, 6):
            commit(lake, hour(n), NOW, rows=table(n))
        assert planned(lake) == [tuple(hour(n) for n in range(6))]
        compact_all(lake)
        assert numbers(lake, *map(hour, range(6))) == [*range(6)]
        assert len({part.pack for m in manifests_of(lake, DATASET).values() for part in m.packed[ROWS]}) == 1

    def test_of_windows_without_rows_writes_nothing(self, lake: Lake) -> None:
        for n in range(3):
            commit(lake, hour(n), NOW, rows=table())
        assert compact_all(lake) == 3
        assert numbers(lake, *map(hour, range(3))) == []
        assert [m.files | m.packed for m in manifests_of(lake, DATASET).values()] == [{}] * 3


class TestPlanning:
    def test_leaves_large_files_and_other_times_alone(self, folder: Lake) -> None:
        commit(folder, hour(0), NOW, rows=table(*range(20_000)))
        for n in range(1, 9):
            commit(folder, hour(n), NOW, rows=table(n))
        large = max(folder.sizes(DATASET).values())
        assert planned(folder, smaller_than=large) == [tuple(hour(n) for n in range(1, 9))]
        within = Window(hour(2).start, hour(5).start)
        assert planned(folder, within, smaller_than=large) == [(hour(2), hour(3), hour(4))]

    def test_leaves_what_gains_nothing(self, folder: Lake) -> None:
        commit(folder, hour(0), NOW, rows=table(1), removed=table(1))
        commit(folder, hour(1), NOW, rows=table(1), removed=table(1))
        assert planned(folder) == []

    def test_divides_by_size(self, folder: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        for n in range(9):
            commit(folder, hour(n), NOW, rows=table(n))
        size = max(size for path, size in folder.sizes(DATASET).items() if path.endswith(".parquet"))
        monkeypatch.setattr("listing_lens.lake.compaction._PACK_BYTES", 4 * size)
        assert [len(group) for group in planned(folder)] == [4, 4]

    def test_names_a_file_that_is_gone(self, folder: Lake) -> None:
        written = commit(folder, hour(0), NOW, rows=table(1))
        folder.remove(f"{folder.folder(DATASET, hour(0))}/{written.files[ROWS][0]}")
        with pytest.raises(
            LensError, match=r"rows\.parquet is gone, though a manifest names it: embed the window again"
        ):
            planned(folder)


class TestWhileItRuns:
    """A window that is replaced while its rows are being copied stays what it was replaced by."""

    @pytest.mark.parametrize("moment", ["rb", "wb", "mv"])
    def test_a_replacement_wins(self, folder: Lake, moment: str) -> None:
        for n in range(4):
            commit(folder, hour(n), NOW, rows=table(n))
        other = Lake(folder.root)
        replays: list[threading.Thread] = []

        def replay(mode: str, path: str) -> None:
            # Before the pack is written, and before the first window's manifest is replaced.
            if mode == moment and not replays:
                replays.append(
                    threading.Thread(target=commit, args=(other, hour(1), LATER), kwargs={"rows": table(99)})
                )
                replays[0].start()
                if moment != "mv":
                    # While a manifest is being replaced, a commit waits.
                    replays[0].join()

        with watched(folder, replay):
            packed = compact_all(folder)
            replays[0].join()
        assert numbers(folder, hour(1)) == [99]
        assert [numbers(folder, hour(n)) for n in (0, 2, 3)] == [[0], [2], [3]]
        if moment != "mv":
            assert packed == 3

    def test_a_reader_in_the_middle_of_old_files_finds_the_rest(self, lake: Lake) -> None:
        for n in range(4):
            commit(lake, hour(n), NOW, rows=table(n, n))
        manifests = list(manifests_of(lake, DATASET).values())
        compact_all(lake)
        sweep(lake, DATASET, LATER + timedelta(days=1))
        found = [batch.column("number").to_pylist() for m in manifests for batch in lake.read_manifest(m, ROWS)]
        assert found == [[n, n] for n in range(4)]

    def test_on_cloud_storage_a_manifest_is_written_if_it_is_still_the_one_compared(
        self, request: pytest.FixtureRequest
    ) -> None:
        lake = Lake(f"gs://{request.getfixturevalue('bucket').name}/lake")
        before = commit(lake, hour(0), NOW, rows=table(1))
        after = before.model_copy(update={"packed_at": LATER})
        path = f"{lake.folder(DATASET, hour(0))}/manifest.json"
        generation = lake._fs.info(path)["generation"]
        real = lake._fs.call
        sent: list[Any] = []

        def call(*args: Any, **options: Any) -> Any:
            sent.append(options["ifGenerationMatch"])
            return real(*args, **options)

        with mock.patch.object(lake._fs, "call", call):
            assert lake.replace_manifest(before, after)
        assert sent == [generation]
        assert lake.manifest(DATASET, hour(0)) == after
        # It is no longer the one before.
        assert not lake.replace_manifest(before, before)
        with mock.patch.object(lake._fs, "call", side_effect=FileExistsError(path)):
            assert not lake.replace_manifest(after, before)
        assert lake.manifest(DATASET, hour(0)) == after


class TestReading:
    def test_touches_only_the_files_of_its_windows(self, folder: Lake) -> None:
        for n in range(4):
            commit(folder, hour(n), NOW, rows=table(n), removed=table(n))
        opened: list[str] = []
        with watched(folder, lambda mode, path: opened.append(path)):
            assert numbers(folder, hour(2)) == [2]
        assert opened == [f"{folder.folder(DATASET, hour(2))}/{folder.manifest(DATASET, hour(2)).files[ROWS][0]}"]

    def test_of_many_windows_opens_their_pack_once_and_reads_full_batches(self, folder: Lake) -> None:
        for n in range(6):
            commit(folder, hour(n), NOW, rows=table(n, n))
        compact_all(folder)
        opened: list[str] = []
        with watched(folder, lambda mode, path: opened.append(path)):
            batches = list(folder.read(DATASET, [hour(n) for n in (0, 1, 3, 4)], batch_rows=4))
        assert [batch.column("number").to_pylist() for batch in batches] == [[0, 0, 1, 1], [3, 3, 4, 4]]
        assert len(opened) == 1
        assert {folder.place(DATASET, hour(n)) for n in range(6)} == {Window(hour(0).start, hour(5).end).name}

    def test_files_of_a_packed_window_are_not_given_away(self, folder: Lake) -> None:
        for n in range(3):
            commit(folder, hour(n), NOW, rows=table(n))
        assert len(folder.paths(DATASET, map(hour, range(3)))) == 3
        compact_all(folder)
        with pytest.raises(LensError, match="are packed in .*read them by Lake.read"):
            folder.paths(DATASET, [hour(0)])


class TestMemory:
    """What a process takes for a window of 160 MB: a few row groups of 4 MB, not the file."""

    WORK: ClassVar = {
        "reading": "for batch in lake.read(dataset, [large]): embedding_matrix(batch)",
        "reading a pack": "for batch in lake.read(dataset, [packed]): embedding_matrix(batch)",
        "compacting": "compact(lake, dataset, [small, large], datetime(2026, 3, 1, tzinfo=UTC))",
    }
    CODE = """
import re, sys
from datetime import UTC, datetime
from listing_lens.lake.compaction import compact
from listing_lens.lake.windows import Lake
from listing_lens.lake.records import embedding_matrix
from listing_lens.lake.window import Window
lake, dataset = Lake(sys.argv[1]), sys.argv[2]
small, large, packed = (Window.from_name(name) for name in sys.argv[3:])
compact(lake, dataset, [small], datetime(2026, 3, 1, tzinfo=UTC))
for batch in lake.read(dataset, [small]): embedding_matrix(batch)
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
before = peak()
{work}
print(peak() - before)
"""

    @pytest.fixture(scope="class")
    def large(self, tmp_path_factory: pytest.TempPathFactory) -> Lake:
        lake = Lake(str(tmp_path_factory.mktemp("large") / "lake"))
        rng = np.random.default_rng(0)
        field = embedding_schema(256).field("embedding")
        for window, groups in ((hour(0), 1), (hour(1), 40), (hour(2), 40)):
            name = f"{lake.new_attempt(NOW)}-rows.parquet"
            with lake.open_for_writing(DATASET, window, name) as file:
                writer = RowGroupWriter(file, pa.schema([field]))
                for _ in range(groups):
                    numbers = pa.array(rng.random(4096 * 256, dtype=np.float32))
                    column = pa.FixedSizeListArray.from_arrays(numbers, type=field.type)
                    writer.write(pa.Table.from_arrays([column], schema=pa.schema([field])))
                writer.close()
            lake.commit(Manifest(dataset=DATASET, window=window.name, files={ROWS: [name]}, counts={}, created_at=NOW))
        compact(lake, DATASET, [hour(2)], LATER)
        assert sum(lake.sizes(DATASET).values()) > 3 * 100e6
        return lake

    @pytest.mark.parametrize("work", WORK)
    def test_is_bounded_by_row_groups(self, large: Lake, work: str) -> None:
        code = self.CODE.replace("{work}", self.WORK[work])
        names = [hour(n).name for n in range(3)]
        command = [sys.executable, "-c", code, large.root, DATASET, *names]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        # Kilobytes.
        assert int(done.stdout) < 110_000


class TestSweeping:
    def test_removes_old_files_two_days_after_they_were_packed(self, lake: Lake) -> None:
        for n in range(3):
            commit(lake, hour(n), NOW, rows=table(n))
        compact_all(lake, LATER)
        assert sweep(lake, DATASET, LATER + timedelta(days=2)) == 0
        assert sweep(lake, DATASET, LATER + timedelta(days=2, seconds=1)) == 3
        assert own_files(lake, hour(0)) == set()
        assert numbers(lake, *map(hour, range(3))) == [0, 1, 2]

    def test_removes_a_pack_two_days_after_no_window_names_it(self, lake: Lake) -> None:
        for n in range(3):
            commit(lake, hour(n), NOW, rows=table(n))
        compact_all(lake, NOW)
        for n in range(3):
            commit(lake, hour(n), LATER + timedelta(hours=n), rows=table(-n))
        assert sweep(lake, DATASET, LATER + timedelta(days=2, hours=2)) == 0
        assert len(packs(lake)) == 1
        assert sweep(lake, DATASET, LATER + timedelta(days=2, hours=3)) == 1
        assert packs(lake) == set()
        assert numbers(lake, *map(hour, range(3))) == [0, -1, -2]

    def test_leaves_what_somebody_may_be_writing_and_what_it_does_not_know(self, lake: Lake) -> None:
        commit(lake, hour(0), NOW, rows=table(0))
        for opened in (
            lake.open_for_writing(DATASET, hour(1), f"{lake.new_attempt(LATER)}-rows.parquet"),
            lake.open_for_writing(DATASET, hour(0), "notes.txt"),
            lake.open_pack(DATASET, f"{hour(0).name}/{lake.new_attempt(LATER)}-rows.parquet"),
        ):
            with opened as file:
                file.write(b"unfinished")
        assert sweep(lake, DATASET, LATER + timedelta(days=1)) == 0
        assert sweep(lake, DATASET, LATER + timedelta(days=3)) == 2
        assert own_files(lake, hour(0)) >= {"notes.txt"}
        assert numbers(lake, hour(0)) == [0]

    def test_a_replay_leaves_files_that_were_packed_lately(self, lake: Lake) -> None:
        for n in range(3):
            commit(lake, hour(n), NOW, rows=table(n))
        before = own_files(lake, hour(0))
        compact_all(lake, LATER)
        commit(lake, hour(0), LATER + timedelta(minutes=1), rows=table(7))
        assert own_files(lake, hour(0)) > before
        assert numbers(lake, hour(0)) == [7]


class Killed(BaseException):
    """As a process that is killed: nothing catches it."""


class Histories(RuleBasedStateMachine):
    """Commits, replays, compactions, sweeps, killed at any write: every window reads as what was last committed."""

    WINDOWS = 5

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.lake = Lake(f"{self.folder.name}/lake")
        self.now = NOW
        self.committed: dict[Window, dict[str, list[int]]] = {}
        # Manifests that readers hold, with what they should give, and until when.
        self.readers: list[tuple[datetime, Manifest, dict[str, list[int]]]] = []

    @initialize()
    def land(self) -> None:
        """Enough windows that it is worth it to pack them."""
        for window in range(self.WINDOWS):
            self.commit(window, [window, 10 * window], more=window % 2 == 1)

    def teardown(self) -> None:
        self.folder.cleanup()

    @contextmanager
    def killed_at(self, step: int | None) -> Iterator[None]:
        """Die at the n-th time that a file is opened, replaced or removed, if there are as many."""
        seen = 0

        def see(mode: str, path: str) -> None:
            nonlocal seen
            seen += 1
            if seen == step:
                raise Killed

        with watched(self.lake, see), suppress(Killed):
            yield

    @rule(window=st.integers(0, WINDOWS - 1), rows=st.lists(st.integers(0, 99), max_size=3), more=st.booleans())
    def commit(self, window: int, rows: list[int], more: bool) -> None:
        tables = {ROWS: table(*rows)} | ({REMOVED: table(*rows, 100)} if more else {})
        commit(self.lake, hour(window), self.now, **tables)
        self.committed[hour(window)] = {kind: t["number"].to_pylist() for kind, t in tables.items()}

    @rule(window=st.integers(0, WINDOWS - 1), step=st.integers(1, 3))
    def commit_killed(self, window: int, step: int) -> None:
        before = self.committed.get(hour(window))
        with self.killed_at(step):
            commit(self.lake, hour(window), self.now, rows=table(7))
        # Either all or nothing; which of the two is what the manifest says.
        landed = hour(window) in self.lake.windows(DATASET)
        if landed and (before is None or numbers(self.lake, hour(window)) == [7]):
            self.committed[hour(window)] = {ROWS: [7]}

    @rule(
        step=st.none() | st.integers(1, 30), replayed=st.none() | st.integers(0, WINDOWS - 1), moment=st.integers(1, 12)
    )
    def compact(self, step: int | None, replayed: int | None, moment: int) -> None:
        """Maybe killed at a step; maybe with a window replayed in the middle."""
        seen = 0
        other = Lake(self.lake.root)

        def see(mode: str, path: str) -> None:
            nonlocal seen
            seen += 1
            if seen == step:
                raise Killed
            # While a manifest is being replaced, a commit would wait.
            if seen == moment and replayed is not None and mode != "mv":
                commit(other, hour(replayed), self.now, rows=table(55))
                self.committed[hour(replayed)] = {ROWS: [55]}

        with watched(self.lake, see), suppress(Killed):
            compact_all(self.lake, self.now)

    @rule(step=st.none() | st.integers(1, 5))
    def sweep(self, step: int | None) -> None:
        with self.killed_at(step):
            sweep(self.lake, DATASET, self.now)

    @rule(hours=st.sampled_from([1, 30, 60]))
    def wait(self, hours: int) -> None:
        self.now += timedelta(hours=hours)

    @rule(window=st.integers(0, WINDOWS - 1))
    def begin_to_read(self, window: int) -> None:
        if content := self.committed.get(hour(window)):
            reader = (self.now + timedelta(days=2), self.lake.manifest(DATASET, hour(window)), content)
            self.readers.append(reader)

    @invariant()
    def each_window_is_what_was_last_committed(self) -> None:
        assert self.lake.windows(DATASET) == sorted(self.committed)
        for window, content in self.committed.items():
            for kind in KINDS:
                assert numbers(self.lake, window, kind=kind) == content.get(kind, [])
        together = [n for window in sorted(self.committed) for n in self.committed[window][ROWS]]
        assert numbers(self.lake, *sorted(self.committed)) == together

    @invariant()
    def who_began_to_read_may_go_on_for_two_days(self) -> None:
        self.readers = [reader for reader in self.readers if self.now < reader[0]]
        for _, manifest, content in self.readers:
            for kind, rows in content.items():
                found = [n for b in self.lake.read_manifest(manifest, kind) for n in b.column("number").to_pylist()]
                assert found == rows

    @rule()
    def nothing_unused_is_kept_for_long(self) -> None:
        """Two days after the last change, what lies there is what manifests name."""
        self.now += timedelta(days=2, seconds=1)
        sweep(self.lake, DATASET, self.now)
        lie = {path for path in self.lake.sizes(DATASET) if path.endswith(".parquet")}
        named = set()
        for window, manifest in manifests_of(self.lake, DATASET).items():
            named |= {f"window={window.name}/{name}" for names in manifest.files.values() for name in names}
            named |= {f"packs/{part.pack}" for parts in manifest.packed.values() for part in parts}
        assert lie == named


Histories.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
TestHistories = Histories.TestCase
