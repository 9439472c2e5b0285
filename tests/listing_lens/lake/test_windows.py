"""The lake: a window is all or nothing, whoever dies at whatever moment, in a folder as on Cloud Storage.

Every case runs on both. The emulated Cloud Storage is reached through the client that the lake itself uses.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.cloud.storage import Bucket
from tiny import listing

from listing_lens.errors import LensError
from listing_lens.lake.records import LISTING_SCHEMA, to_table
from listing_lens.lake.window import Window
from listing_lens.lake.windows import DEAD_LETTERS, LISTINGS, ROWS, Lake, Manifest

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
DATASET = "evaluations/some-space"


def hours(start: int, end: int) -> Window:
    return Window(
        datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=start), NOW.replace(day=1, hour=0) + timedelta(hours=end)
    )


def table(*numbers: int) -> pa.Table:
    return pa.table({"number": pa.array(numbers, pa.int64()), "square": pa.array([n * n for n in numbers], pa.int64())})


def numbers(lake: Lake, *windows: Window, kind: str = ROWS) -> list[int]:
    return [n for batch in lake.read(DATASET, windows, kind=kind) for n in batch.column("number").to_pylist()]


def write_file(lake: Lake, window: Window, name: str, rows: pa.Table) -> str:
    """A file of a window that no manifest names yet, as a job leaves it that died before its commit."""
    with lake.open_for_writing(DATASET, window, name) as file:
        pq.write_table(rows, file)
    return name


def manifest(window: Window, files: dict[str, list[str]], now: datetime = NOW) -> Manifest:
    return Manifest(dataset=DATASET, window=window.name, files=files, counts={"rows": 1}, created_at=now)


@pytest.fixture(params=["folder", "gs"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    if request.param == "folder":
        return Lake(str(tmp_path / "lake"))
    return Lake(f"gs://{request.getfixturevalue('bucket').name}/some/lake")


@pytest.fixture
def files(lake: Lake, request: pytest.FixtureRequest) -> Callable[[Window], set[str]]:
    """The names of what lies in a window's folder, seen without the lake."""

    def names(window: Window) -> set[str]:
        folder = lake.folder(DATASET, window)
        if not lake.root.startswith("gs://"):
            return set(os.listdir(folder))
        bucket: Bucket = request.getfixturevalue("bucket")
        prefix = folder.removeprefix(f"gs://{bucket.name}/")
        return {blob.name.rsplit("/", 1)[-1] for blob in bucket.list_blobs(prefix=prefix)}

    return names


class TestWindows:
    def test_appear_with_their_manifest_and_not_before(self, lake: Lake) -> None:
        name = write_file(lake, hours(0, 1), f"{lake.new_attempt(NOW)}-0.parquet", table(1))
        assert lake.windows(DATASET) == []
        with pytest.raises(LensError, match="are not in the lake"):
            numbers(lake, hours(0, 1))
        lake.commit(manifest(hours(0, 1), {ROWS: [name]}))
        assert lake.windows(DATASET) == [hours(0, 1)]
        assert numbers(lake, hours(0, 1)) == [1]

    def test_come_by_time_and_only_those_asked_for(self, lake: Lake) -> None:
        for start in (3, 0, 1, 2):
            lake.write_table(DATASET, hours(start, start + 1), table(start), NOW)
        lake.write_table("embeddings/other-12345678", hours(0, 1), table(9), NOW)
        lake.write_table(f"{DATASET}9", hours(7, 8), table(9), NOW)
        assert lake.windows(DATASET) == [hours(n, n + 1) for n in range(4)]
        assert lake.windows(DATASET, hours(1, 3)) == [hours(1, 2), hours(2, 3)]
        assert lake.windows("nothing") == []

    def test_of_no_rows_are_windows(self, lake: Lake) -> None:
        lake.write_table(DATASET, hours(0, 1), table(), NOW)
        lake.commit(manifest(hours(1, 2), {}))
        assert lake.covering(DATASET, hours(0, 2)) == [hours(0, 1), hours(1, 2)]
        assert numbers(lake, hours(0, 1), hours(1, 2)) == []

    def test_with_a_gap_between_them_do_not_cover(self, lake: Lake) -> None:
        for start in (0, 2):
            lake.write_table(DATASET, hours(start, start + 1), table(start), NOW)
        assert lake.covering(DATASET, hours(2, 3)) == [hours(2, 3)]
        with pytest.raises(LensError, match=r"of \[2026-01-01 01:00:00Z, 2026-01-01 02:00:00Z\) have not landed"):
            lake.covering(DATASET, hours(0, 3))

    def test_say_how_they_came_to_be(self, lake: Lake) -> None:
        written = lake.write_table(
            DATASET, hours(0, 1), table(1, 2), NOW, counts={"read": 3}, parameters={"k": [1]}, image_root="gs://photos"
        )
        assert lake.manifest(DATASET, hours(0, 1)) == written
        assert (written.counts, written.parameters, written.created_at) == ({"read": 3}, {"k": [1]}, NOW)


class TestReplacing:
    def test_leaves_the_new_rows_and_keeps_the_files_before_for_their_readers(
        self, lake: Lake, files: Callable[[Window], set[str]]
    ) -> None:
        lake.write_table(DATASET, hours(0, 1), table(1, 2), NOW - timedelta(days=9))
        middle = lake.write_table(DATASET, hours(0, 1), table(4), NOW - timedelta(days=5))
        new = lake.write_table(DATASET, hours(0, 1), table(3), NOW)
        assert numbers(lake, hours(0, 1)) == [3]
        assert files(hours(0, 1)) == {*new.files[ROWS], *middle.files[ROWS], "manifest.json"}

    def test_does_not_disturb_a_reader_that_is_in_the_middle(self, lake: Lake) -> None:
        lake.write_table(DATASET, hours(0, 1), table(1, 2), NOW - timedelta(days=9))
        reader = lake.read(DATASET, [hours(0, 1)], batch_rows=1)
        next(reader)
        lake.write_table(DATASET, hours(0, 1), table(3), NOW)
        assert len(list(reader)) == 1

    def test_again_with_the_same_files_keeps_them(self, lake: Lake) -> None:
        written = lake.write_table(DATASET, hours(0, 1), table(1), NOW)
        lake.commit(written)
        assert numbers(lake, hours(0, 1)) == [1]

    def test_leaves_what_another_attempt_is_writing(self, lake: Lake, files: Callable[[Window], set[str]]) -> None:
        lake.write_table(DATASET, hours(0, 1), table(1), NOW)
        other = write_file(lake, hours(0, 1), f"{lake.new_attempt(NOW - timedelta(days=2))}-0.parquet", table(7))
        lake.write_table(DATASET, hours(0, 1), table(2), NOW)
        assert other in files(hours(0, 1))
        lake.commit(manifest(hours(0, 1), {ROWS: [other]}))
        assert numbers(lake, hours(0, 1)) == [7]

    def test_removes_what_was_abandoned_for_two_days(self, lake: Lake, files: Callable[[Window], set[str]]) -> None:
        old = lake.new_attempt(NOW - timedelta(days=2, seconds=1))
        write_file(lake, hours(0, 1), f"{old}-0.parquet", table(7))
        foreign = write_file(lake, hours(0, 1), "notes.parquet", table(7))
        new = lake.write_table(DATASET, hours(0, 1), table(2), NOW)
        assert files(hours(0, 1)) == {*new.files[ROWS], foreign, "manifest.json"}

    def test_touches_no_other_window(self, lake: Lake) -> None:
        lake.write_table(DATASET, hours(0, 1), table(1), NOW - timedelta(days=9))
        lake.write_table(DATASET, hours(0, 2), table(2), NOW - timedelta(days=9))
        lake.write_table(DATASET, hours(0, 1), table(3), NOW)
        assert (numbers(lake, hours(0, 1)), numbers(lake, hours(0, 2))) == ([3], [2])

    def test_a_writer_killed_before_its_manifest_leaves_the_window_as_it_was(self, lake: Lake) -> None:
        lake.write_table(DATASET, hours(0, 1), table(1, 2), NOW)
        with mock.patch.object(Lake, "write_bytes", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            lake.write_table(DATASET, hours(0, 1), table(3), NOW)
        assert numbers(lake, hours(0, 1)) == [1, 2]
        lake.write_table(DATASET, hours(0, 1), table(4), NOW)
        assert numbers(lake, hours(0, 1)) == [4]

    def test_a_writer_killed_after_its_manifest_has_written_the_window(self, lake: Lake) -> None:
        abandoned = lake.new_attempt(NOW - timedelta(days=9))
        write_file(lake, hours(0, 1), f"{abandoned}-0.parquet", table(7))
        with (
            mock.patch.object(lake._fs, "rm_file", side_effect=KeyboardInterrupt),
            pytest.raises(KeyboardInterrupt),
        ):
            lake.write_table(DATASET, hours(0, 1), table(3), NOW)
        assert numbers(lake, hours(0, 1)) == [3]

    def test_what_another_run_removed_meanwhile_is_no_error(self, lake: Lake) -> None:
        abandoned = lake.new_attempt(NOW - timedelta(days=9))
        write_file(lake, hours(0, 1), f"{abandoned}-0.parquet", table(7))
        with mock.patch.object(lake._fs, "rm_file", side_effect=FileNotFoundError):
            lake.write_table(DATASET, hours(0, 1), table(2), NOW)
        assert numbers(lake, hours(0, 1)) == [2]

    def test_a_manifest_that_cannot_be_read_is_named_and_can_be_replaced(self, lake: Lake) -> None:
        lake.write_table(DATASET, hours(0, 1), table(1), NOW)
        lake.write_bytes(f"{lake.folder(DATASET, hours(0, 1))}/manifest.json", b'{"version": 0}')
        with pytest.raises(LensError, match=r"manifest\.json is not a manifest of this version"):
            numbers(lake, hours(0, 1))
        lake.write_table(DATASET, hours(0, 1), table(2), NOW)
        assert numbers(lake, hours(0, 1)) == [2]


class TestReading:
    def test_streams_batches_of_a_bounded_size_in_order(self, lake: Lake) -> None:
        lake.write_table(DATASET, hours(0, 1), table(*range(10)), NOW)
        lake.write_table(DATASET, hours(1, 2), table(*range(10, 13)), NOW)
        batches = list(lake.read(DATASET, [hours(0, 1), hours(1, 2)], batch_rows=4))
        assert [len(batch) for batch in batches] == [4, 4, 2, 3]
        assert [n for batch in batches for n in batch.column("number").to_pylist()] == list(range(13))

    def test_takes_only_the_columns_asked_for(self, lake: Lake) -> None:
        lake.write_table(DATASET, hours(0, 1), table(3), NOW)
        (batch,) = lake.read(DATASET, [hours(0, 1)], ["square"])
        assert batch.to_pydict() == {"square": [9]}

    def test_takes_only_the_kind_asked_for(self, lake: Lake) -> None:
        names = {
            kind: write_file(lake, hours(0, 1), f"{kind}.parquet", table(n))
            for n, kind in enumerate((ROWS, DEAD_LETTERS))
        }
        lake.commit(manifest(hours(0, 1), {kind: [name] for kind, name in names.items()}))
        assert numbers(lake, hours(0, 1)) == [0]
        assert numbers(lake, hours(0, 1), kind=DEAD_LETTERS) == [1]
        assert numbers(lake, hours(0, 1), kind="removed") == []

    def test_works_on_a_worker_that_the_lake_was_sent_to(self, lake: Lake) -> None:
        lake.write_table(DATASET, hours(0, 1), table(5), NOW)
        assert numbers(pickle.loads(pickle.dumps(lake)), hours(0, 1)) == [5]


class TestDoor:
    """What others could not use does not land; what landed all the same is named when it is read."""

    def landing(self, **columns: object) -> pa.Table:
        rows = to_table([listing("a", hours(0, 1)), listing("b", hours(0, 1), minute=5)], LISTING_SCHEMA)
        for name, value in columns.items():
            at = rows.schema.get_field_index(name)
            rows = rows.set_column(at, name, pa.array([rows[name][0].as_py(), value], rows.schema.field(at).type))
        return rows

    @pytest.mark.parametrize(
        ("columns", "problem"),
        [
            pytest.param({"status": "archived"}, "item 'b': its status 'archived' is none of on_sale", id="status"),
            pytest.param({"item_id": ""}, "item '': its item_id is empty", id="no id"),
            pytest.param({"item_id": "é" * 257}, "its item_id is longer than 512 bytes", id="long id"),
            pytest.param({"category": ["A", "x" * 32_767]}, "a level longer than 32766 bytes", id="long category"),
            pytest.param({"category": ["A", None]}, "its category has an empty level", id="empty category"),
            pytest.param(
                {"updated_at": hours(0, 1).end},
                r"its updated_at 2026-01-01T01:00:00\+00:00 is not before the end of \[2026-01-01 00:00:00Z, ",
                id="from after the window",
            ),
            pytest.param(
                {"updated_at": datetime(1969, 12, 31, tzinfo=UTC)},
                "is not between 1970 and 2112",
                id="from before all windows",
            ),
        ],
    )
    def test_an_invalid_listing_does_not_land(self, lake: Lake, columns: dict[str, object], problem: str) -> None:
        with pytest.raises(LensError, match=f"1 of 2 listings of .* are invalid: .*{problem}"):
            lake.write_table(LISTINGS, hours(0, 1), self.landing(**columns), NOW)
        assert lake.windows(LISTINGS) == []

    def test_a_late_listing_does(self, lake: Lake) -> None:
        late = hours(0, 1).start - timedelta(days=3)
        lake.write_table(LISTINGS, hours(0, 1), self.landing(updated_at=late), NOW)
        assert lake.windows(LISTINGS) == [hours(0, 1)]

    @pytest.mark.parametrize(
        ("rows", "problem"),
        [
            pytest.param(lambda rows: rows.drop_columns(["price"]), "has no column 'price'", id="absent"),
            pytest.param(
                lambda rows: rows.set_column(3, "price", pa.array([1.5, 2.5])),
                "column 'price' is double instead of int64",
                id="of another type",
            ),
        ],
    )
    def test_other_columns_do_not_land_and_are_named_when_they_are_read(
        self, lake: Lake, rows: Callable[[pa.Table], pa.Table], problem: str
    ) -> None:
        wrong = rows(self.landing())
        with pytest.raises(LensError, match=f"listings of .*{problem}"):
            lake.write_table(LISTINGS, hours(0, 1), wrong, NOW)
        with lake.open_for_writing(LISTINGS, hours(0, 1), "others.parquet") as file:
            pq.write_table(wrong, file)
        written = manifest(hours(0, 1), {ROWS: ["others.parquet"]}).model_copy(update={"dataset": LISTINGS})
        lake.commit(written)
        with pytest.raises(LensError, match=rf"others\.parquet.*{problem}"):
            list(lake.read(LISTINGS, [hours(0, 1)]))

    def test_columns_that_may_be_null_may_be_absent(self, lake: Lake) -> None:
        lake.write_table(LISTINGS, hours(0, 1), self.landing().drop_columns(["seller_id", "product_id"]), NOW)
        assert lake.windows(LISTINGS) == [hours(0, 1)]

    def test_an_older_layout_is_refused(self, lake: Lake) -> None:
        lake.write_bytes(f"{lake.root}/embeddings/small-12345678/window=a_b/manifest.json", b"{}")
        with pytest.raises(LensError, match=r"of a layout before this version's: remove .*embeddings and embed again"):
            lake.check()


class TestIdentity:
    def test_is_of_the_content(self, lake: Lake) -> None:
        first = lake.write_table(DATASET, hours(0, 1), table(1), NOW)
        assert lake.manifest(DATASET, hours(0, 1)).identity == first.identity
        again = lake.write_table(DATASET, hours(0, 1), table(1), NOW)
        assert again.identity != first.identity
        assert lake.manifests(DATASET, [hours(0, 1)])[hours(0, 1)].identity == again.identity


class TestPlace:
    def test_an_empty_lake_can_be_reached(self, lake: Lake) -> None:
        lake.check()
        lake.check()

    def test_a_slash_at_the_end_is_no_other_place(self, lake: Lake) -> None:
        lake.write_table(DATASET, hours(0, 1), table(5), NOW)
        assert numbers(Lake(f"{lake.root}/"), hours(0, 1)) == [5]

    @pytest.mark.parametrize("name", ["la[k]e", "la*ke", "la ke", "la?ke"])
    def test_a_folder_may_have_any_name(self, tmp_path: Path, name: str) -> None:
        lake = Lake(str(tmp_path / name))
        lake.write_table(DATASET, hours(0, 1), table(5), NOW)
        assert lake.windows(DATASET) == [hours(0, 1)]

    def test_a_bucket_that_is_not_there_is_reported(self, bucket: Bucket) -> None:
        with pytest.raises(LensError, match="cannot be reached .*check LENS_LAKE"):
            Lake("gs://no-such-bucket/lake").check()

    def test_a_file_in_the_way_is_reported(self, tmp_path: Path) -> None:
        (tmp_path / "lake").write_text("")
        with pytest.raises(LensError, match="cannot be reached .*check LENS_LAKE"):
            Lake(str(tmp_path / "lake")).check()

    def test_another_store_is_refused(self) -> None:
        with pytest.raises(LensError, match="only folders and gs:// prefixes"):
            Lake("s3://bucket/lake").check()

    def test_without_credentials_it_is_said_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "")
        monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
        monkeypatch.setenv("NO_GCE_CHECK", "true")
        with pytest.raises(LensError, match="no Google Cloud credentials: run `gcloud auth"):
            Lake("gs://bucket/lake").check()


def test_an_attempt_has_a_name_of_its_own_that_sorts_by_time() -> None:
    names = [Lake.new_attempt(NOW + timedelta(seconds=n)) for n in range(50)]
    assert names == sorted(names)
    assert Lake.new_attempt(NOW) != Lake.new_attempt(NOW)
