"""Tables: one row per key whatever comes in and dies when, versions that stay as they were, and commits that take turns.

Concurrency and kills at random points are tried in test_soak.py; here, each moment of a commit by itself.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from conditional_storage import Storage
from hypothesis import given, settings
from hypothesis import strategies as st

from listing_lens.errors import LensError
from listing_lens.lake import locks
from listing_lens.lake.tables import Table, changed_since, places_between, places_of, scan, version_at

SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("version", pa.int64(), nullable=False),
        pa.field("embedding", pa.list_(pa.float16(), 4)),
    ]
)
NEWER = "source.version > target.version"

Rows = dict[str, int]


def batch(rows: Rows) -> pa.RecordBatch:
    """Rows by key, each of a version; an odd version has no embedding."""
    values = np.array([[version % 100] * 4 for version in rows.values()], np.float16)
    mask = pa.array([version % 2 == 1 for version in rows.values()], pa.bool_())
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), pa.float16()), 4, mask=mask)
    return pa.record_batch(
        [pa.array(list(rows), pa.string()), pa.array(list(rows.values()), pa.int64()), embedding], schema=SCHEMA
    )


def merge(table: Table, rows: Rows) -> None:
    table.merge(SCHEMA, [batch(rows)], newer=NEWER)


def held(table: Table, version: int | None = None, filter: str | None = None) -> Rows:
    """What a table holds; every key once, and each with the embedding of its version."""
    rows = table.open(version).to_table(filter=filter).to_pylist()
    assert len({row["item_id"] for row in rows}) == len(rows)
    for row in rows:
        assert row["embedding"] == (None if row["version"] % 2 else [row["version"] % 100] * 4)
    return {row["item_id"]: row["version"] for row in rows}


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(str(tmp_path / "lake" / "items.lance"), "item_id")


class TestMerging:
    def test_makes_the_table(self, table: Table) -> None:
        assert not table.exists()
        assert table.version() is None
        assert table.rows() == []
        merged = table.merge(SCHEMA, [batch({"a": 2})], newer=NEWER)
        assert (merged.inserted, merged.updated, merged.version) == (1, 0, table.version())
        assert held(table) == {"a": 2}

    def test_keeps_the_newer_of_each_key(self, table: Table) -> None:
        merge(table, {"a": 2, "b": 5, "c": 3})
        merged = table.merge(SCHEMA, [batch({"a": 4, "b": 1}), batch({"d": 1})], newer=NEWER)
        assert (merged.inserted, merged.updated) == (1, 1)
        assert held(table) == {"a": 4, "b": 5, "c": 3, "d": 1}

    def test_of_the_same_rows_again_makes_no_version(self, table: Table) -> None:
        merge(table, {"a": 2, "b": 3})
        version = table.version()
        merge(table, {"a": 2, "b": 3})
        assert table.version() == version

    def test_without_a_condition_replaces(self, table: Table) -> None:
        merge(table, {"a": 6})
        table.merge(SCHEMA, [batch({"a": 2})])
        assert held(table) == {"a": 2}

    def test_of_no_rows_changes_nothing(self, table: Table) -> None:
        table.merge(SCHEMA, [], newer=NEWER)
        assert held(table) == {}

    def test_of_one_key_twice_is_refused_and_changes_nothing(self, table: Table) -> None:
        merge(table, {"a": 2})
        with pytest.raises(Exception, match="multiple source rows"):
            table.merge(SCHEMA, [batch({"a": 4}), batch({"a": 6})], newer=NEWER)
        assert held(table) == {"a": 2}

    @given(
        st.lists(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 50), min_size=1), min_size=1, max_size=6)
    )
    @settings(max_examples=15, deadline=None)
    def test_is_the_largest_version_of_each_key_in_whatever_order(
        self, tmp_path_factory: pytest.TempPathFactory, merges: list[Rows]
    ) -> None:
        truth: Rows = {}
        for rows in merges:
            truth |= {key: max(version, truth.get(key, 0)) for key, version in rows.items()}
        for number, order in enumerate((merges, merges[::-1])):
            table = Table(str(tmp_path_factory.mktemp("table") / f"{number}.lance"), "item_id")
            for rows in order:
                merge(table, rows)
            assert held(table) == truth


class TestDying:
    """A process that is killed in a merge; the next one finds the table as it was, or as it was to be."""

    @pytest.mark.parametrize(
        ("moment", "left"),
        [
            pytest.param("before", {"a": 2}, id="before the commit, its rows already written"),
            pytest.param("after", {"a": 4, "b": 2}, id="after the commit"),
        ],
    )
    def test_leaves_all_of_it_or_nothing(self, table: Table, moment: str, left: Rows) -> None:
        merge(table, {"a": 2})
        process = multiprocessing.get_context("spawn").Process(target=_merge_and_die, args=(table, moment))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert held(table) == left
        # The lock went with it.
        merge(table, {"a": 4, "b": 2})
        assert held(table) == {"a": 4, "b": 2}


def _merge_and_die(table: Table, moment: str) -> None:
    commit = Table._commit

    def killed(self: Table, *arguments: object) -> int:
        if moment == "after":
            commit(self, *arguments)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")

    with mock.patch.object(Table, "_commit", killed):
        merge(table, {"a": 4, "b": 2})


class TestCommits:
    def test_is_refused_when_somebody_committed_without_the_lock(self, table: Table) -> None:
        merge(table, {"a": 2})
        before = Table._require_latest

        def meanwhile(self: Table, *arguments: object) -> None:
            rows = pa.Table.from_batches([batch({"z": 2})])
            self.open().merge_insert("item_id").when_not_matched_insert_all().execute(rows)
            before(self, *arguments)  # type: ignore[arg-type]

        with (
            mock.patch.object(Table, "_require_latest", meanwhile),
            pytest.raises(LensError, match="moved from version 2 to 3 during a commit: let nothing else write it"),
        ):
            merge(table, {"a": 4})
        assert held(table) == {"a": 2, "z": 2}

    def test_is_undone_when_a_key_is_there_twice_after_it(self, table: Table) -> None:
        merge(table, {"a": 2, "b": 2})
        commit = Table._commit

        def doubling(self: Table, *arguments: object) -> int:
            commit(self, *arguments)  # type: ignore[arg-type]
            import lance

            return int(lance.write_dataset(batch({"a": 4}), self.path, mode="append").version)

        with (
            mock.patch.object(Table, "_commit", doubling),
            pytest.raises(LensError, match="1 keys were merged, but 2 rows have them; the commit is undone"),
        ):
            merge(table, {"a": 4})
        assert held(table) == {"a": 2, "b": 2}

    def test_a_key_that_is_there_twice_is_found(self, table: Table) -> None:
        import lance

        merge(table, {"a": 2, "b": 2})
        table.require_unique()
        lance.write_dataset(batch({"b": 4}), table.path, mode="append")
        with pytest.raises(LensError, match="holds item_id 'b' twice: restore the version before"):
            table.require_unique()


class TestPowerCuts:
    def test_what_is_merged_is_on_the_disk_before_its_commit_and_the_commit_after_it(self, table: Table) -> None:
        merge(table, {"a": 2, "b": 2})
        versions = Path(table.path) / "_versions"
        before, flushed = set(versions.glob("*.manifest")), []

        def noted(paths: list[str]) -> None:
            flushed.append(({Path(path) for path in paths}, set(versions.glob("*.manifest")) - before))

        with mock.patch("listing_lens.lake.tables.flush_to_disk", noted):
            merge(table, {"a": 4, "c": 2})
        (data, none_yet), (commit, committed) = flushed
        opened = table.open()
        files = {
            Path(table.path) / "data" / file.path
            for fragment in opened.get_fragments()
            for file in fragment.data_files()
        }
        assert max(files, key=lambda path: path.stat().st_mtime) in data
        assert set((Path(table.path) / "_deletions").iterdir()) <= data
        assert not none_yet
        assert committed < commit
        assert all(path.exists() for path in data | commit)


class TestVersions:
    def test_stay_as_they_were(self, table: Table) -> None:
        merge(table, {"a": 2})
        before = table.version()
        merge(table, {"a": 4, "b": 2})
        assert held(table, before) == {"a": 2}

    def test_that_are_not_kept_are_named_with_the_setting(self, table: Table) -> None:
        merge(table, {"a": 2})
        before = table.version()
        merge(table, {"a": 4})
        table.compact(keep=timedelta(0))
        with pytest.raises(LensError, match=f"of version {before}, or it is no longer kept .LENS_LAKE_RETENTION_DAYS"):
            table.open(before)
        assert held(table) == {"a": 4}

    def test_of_no_table_are_refused(self, table: Table) -> None:
        with pytest.raises(LensError, match=r"there is no table .*items\.lance: run the job that writes it first"):
            table.open()

    def test_what_changed_since_one_is_known_also_after_compaction(self, table: Table) -> None:
        merge(table, {"a": 2, "b": 2, "c": 2})
        since = table.version()
        assert since
        merge(table, {"b": 4, "c": 1, "d": 2})
        assert held(table, filter=changed_since(since)) == {"b": 4, "d": 2}
        table.compact(keep=timedelta(days=1))
        assert held(table, filter=changed_since(since)) == {"b": 4, "d": 2}
        latest = table.version()
        assert latest
        assert held(table, filter=changed_since(latest)) == {}


class TestPlaces:
    def test_of_a_version_are_its_fragments(self, table: Table) -> None:
        merge(table, {"a": 2})
        merge(table, {"b": 2})
        version = table.version()
        assert version
        assert [at for at, _ in places_of(table, version)] == [version, version]

    @given(
        merges=st.lists(
            st.dictionaries(st.sampled_from("abcd"), st.integers(1, 50), min_size=1), min_size=2, max_size=5
        ),
        data=st.data(),
    )
    @settings(max_examples=15)
    def test_between_two_versions_hold_every_row_that_the_table_had(
        self, tmp_path_factory: pytest.TempPathFactory, merges: list[Rows], data: st.DataObject
    ) -> None:
        table = Table(str(tmp_path_factory.mktemp("table") / "items.lance"), "item_id")
        had: list[tuple[int, Rows]] = []
        for rows in merges:
            merge(table, rows)
            if data.draw(st.booleans()):
                table.compact(keep=timedelta(days=1))
            version = table.version()
            assert version
            had.append((version, held(table)))
        first, last = sorted(data.draw(st.tuples(*[st.sampled_from([version for version, _ in had])] * 2)))
        expected = {row for version, rows in had if first <= version <= last for row in rows.items()}
        places = places_between(table, first, last)
        assert len({fragment for _, fragment in places}) == len(places)
        found = {
            (row["item_id"], row["version"])
            for version, fragment in places
            for row in table.open(version).get_fragment(fragment).to_table(["item_id", "version"]).to_pylist()
        }
        assert found == expected

    def test_a_version_is_found_by_its_time(self, table: Table) -> None:
        merge(table, {"a": 2})
        began = datetime.now(UTC)
        merge(table, {"b": 2})
        merge(table, {"c": 2})
        latest = table.version()
        assert latest
        assert version_at(table, began) == latest - 2
        assert version_at(table, datetime.now(UTC)) == latest
        assert version_at(table, datetime(2020, 1, 1, tzinfo=UTC)) == 1


class TestCompaction:
    def test_makes_one_file_of_many_and_keeps_the_rows(self, table: Table) -> None:
        truth: Rows = {}
        for number in range(5):
            rows = dict.fromkeys("abcdef"[number:], 2 * number + 2)
            merge(table, rows)
            truth |= rows
        done = table.compact(keep=timedelta(days=1))
        assert (done.files_before, done.files_after) == (5, 1)
        assert held(table) == truth

    def test_twice_finds_nothing_to_do(self, table: Table) -> None:
        merge(table, {"a": 2})
        merge(table, {"b": 2})
        table.compact(keep=timedelta(days=1))
        version = table.version()
        table.compact(keep=timedelta(days=1))
        assert table.version() == version

    def test_frees_the_room_of_versions_that_are_not_kept(self, table: Table) -> None:
        for number in range(4):
            merge(table, dict.fromkeys("abcdef", 2 * number + 2))
        assert table.compact(keep=timedelta(days=1)).bytes_removed == 0
        assert table.compact(keep=timedelta(0)).bytes_removed > 0


class TestDeleting:
    def test_removes_the_rows_of_some_keys(self, table: Table) -> None:
        merge(table, {"a": 2, "it's": 2, "c": 2})
        table.delete(["it's", "absent"])
        table.delete([])
        assert held(table) == {"a": 2, "c": 2}

    def test_from_no_table_removes_nothing(self, table: Table) -> None:
        table.delete(["a"])
        assert not table.exists()


class TestScanning:
    def test_streams_batches_of_a_bounded_size(self, table: Table) -> None:
        merge(table, {f"m{n:04d}": 2 for n in range(100)})
        batches = list(scan(table.open(), ["item_id"], batch_size=30))
        assert all(len(found) <= 30 for found in batches)
        assert sum(map(len, batches)) == 100
        assert batches[0].schema.names == ["item_id"]

    def test_takes_the_rows_that_a_filter_lets_through(self, table: Table) -> None:
        merge(table, {"a": 2, "b": 3, "c": 4})
        found = [
            key for rows in scan(table.open(), ["item_id"], filter="embedding IS NULL") for key in rows[0].to_pylist()
        ]
        assert found == ["b"]

    def test_of_wide_rows_in_long_batches_comes_to_its_end(self, tmp_path: Path) -> None:
        # More bytes in a batch than are read ahead.
        wide = pa.schema([pa.field("item_id", pa.string(), nullable=False), pa.field("body", pa.binary())])
        table = Table(str(tmp_path / "wide.lance"), "item_id")
        rows = pa.record_batch([pa.array([f"{n}" for n in range(3000)]), pa.array([b"x" * 30_000] * 3000)], schema=wide)
        table.merge(wide, [rows])
        assert sum(len(found) for found in scan(table.open(), ["item_id", "body"], batch_size=3000)) == 3000


class TestOnCloudStorage:
    """What a commit relies on there: a lease, and a manifest that is written only where there is none."""

    @pytest.fixture
    def table(self, cloud: Storage) -> Table:
        return Table("gs://bucket/lake/items.lance", "item_id")

    def test_tables_are_as_in_a_folder(self, table: Table) -> None:
        assert not table.exists()
        merge(table, {"a": 2, "b": 3})
        merge(table, {"a": 4, "c": 2})
        table.compact(keep=timedelta(0))
        table.delete(["c"])
        assert held(table) == {"a": 4, "b": 3}

    def test_a_version_is_written_only_where_there_is_none(self, table: Table, cloud: Storage) -> None:
        merge(table, {"a": 2})
        merge(table, {"a": 4})
        manifests = [asked for path, asked in cloud.writes if path.endswith(".manifest")]
        assert manifests == [0] * 3

    def test_commits_take_turns(self, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(locks, "_POLL_S", 0.01)
        merge(table, {"a": 2})
        every = [{"a": 2 * n, f"m{n}": 2} for n in range(2, 8)]
        with ThreadPoolExecutor(len(every)) as pool:
            list(pool.map(lambda rows: merge(table, rows), every))
        assert held(table) == {"a": 14} | {f"m{n}": 2 for n in range(2, 8)}

    def test_a_holder_whose_lease_was_taken_over_commits_nothing(self, table: Table, cloud: Storage) -> None:
        merge(table, {"a": 2})
        before = Table._require_latest

        def paused(self: Table, *arguments: object) -> None:
            lock = "bucket/lake/items.lance.lock"
            cloud.write(lock, b"another", cloud.objects[lock][1])
            before(self, *arguments)  # type: ignore[arg-type]

        with (
            mock.patch.object(Table, "_require_latest", paused),
            pytest.raises(LensError, match="was taken over by another process, since this one was paused"),
        ):
            merge(table, {"a": 4})
        assert held(table) == {"a": 2}


@pytest.mark.parametrize("name", ["la[k]e", "la*ke", "la ke", "la?ke", "lake#1", "la%20ke", "läke"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    table = Table(str(tmp_path / name / "items.lance"), "item_id")
    merge(table, {"a": 2})
    merge(table, {"a": 4})
    table.compact(keep=timedelta(0))
    assert held(table) == {"a": 4}
    assert os.listdir(tmp_path) == [name]


def test_a_table_can_be_sent_to_a_worker(table: Table) -> None:
    merge(table, {"a": 2})
    assert held(pickle.loads(pickle.dumps(table))) == {"a": 2}
