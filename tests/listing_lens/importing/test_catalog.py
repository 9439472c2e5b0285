"""A user's file is imported as a whole or not at all, and says which rows are at fault."""

import csv
import io
import re
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from listing_lens.cli.catalog import app
from listing_lens.errors import LensError
from listing_lens.importing.catalog import import_catalog, read_step
from listing_lens.lake.records import LISTING_SCHEMA
from listing_lens.lake.window import gaps
from listing_lens.lake.windows import LISTINGS, Lake

NOW = datetime(2026, 12, 1, tzinfo=UTC)
DAY = timedelta(days=1)
GOOD = {
    "item_id": "a1",
    "title": "Red mug",
    "category": "Home > Kitchen > Mugs",
    "price": "1980",
    "image": "a1.jpg",
    "status": "on_sale",
    "created_at": "2026-11-01T09:00:00Z",
    "updated_at": "2026-11-01T10:00:00Z",
}


@pytest.fixture
def lake(tmp_path):
    return Lake(str(tmp_path / "lake"))


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a1.jpg").write_bytes(b"x")
    return folder


def write_csv(path, rows, encoding="utf-8", columns=tuple(GOOD)):
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows_of(lake):
    windows = lake.windows(LISTINGS)
    return [row for batch in lake.read(LISTINGS, windows) for row in batch.to_pylist()]


def refusal(lake, file, images=None, step=DAY, **options):
    """The words of the refusal, with the lake left untouched."""
    with pytest.raises(LensError) as caught:
        import_catalog(lake, file, images, step, NOW, **options)
    assert lake.windows(LISTINGS) == []
    assert not list(Path(lake.root).rglob("*.parquet"))
    return str(caught.value)


class TestGoodFiles:
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
    def test_csv(self, lake, images, tmp_path, encoding):
        file = write_csv(tmp_path / "c.csv", [GOOD | {"title": '赤いマグ, "大"\n2個'}], encoding)
        imported = import_catalog(lake, file, images, DAY, NOW)
        [row] = rows_of(lake)
        assert row == {
            "item_id": "a1",
            "title": '赤いマグ, "大"\n2個',
            "category": ["Home", "Kitchen", "Mugs"],
            "price": 1980,
            "image_uri": "a1.jpg",
            "status": "on_sale",
            "created_at": datetime(2026, 11, 1, 9, tzinfo=UTC),
            "updated_at": datetime(2026, 11, 1, 10, tzinfo=UTC),
            "seller_id": None,
            "product_id": None,
        }
        [window] = imported.windows
        assert imported.windows[window] == 1
        assert imported.missing_images == 0
        manifest = lake.manifest(LISTINGS, window)
        assert manifest.image_root == str(images.resolve())
        assert manifest.counts == {"rows": 1}

    def test_parquet_with_types_of_its_own(self, lake, images, tmp_path):
        moment = datetime(2026, 11, 1, 10)  # noqa: DTZ001 - a naive time in a file is UTC
        values = GOOD | {
            "item_id": 17,
            "price": 1980,
            "category": ["A", "B"],
            "created_at": moment,
            "updated_at": moment,
        }
        table = pa.Table.from_pylist([values])
        for name in ("created_at", "updated_at"):
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, table[name].cast(pa.timestamp("ns")))
        pq.write_table(table, tmp_path / "c.parquet")
        import_catalog(lake, tmp_path / "c.parquet", images, DAY, NOW)
        [row] = rows_of(lake)
        assert (row["item_id"], row["category"]) == ("17", ["A", "B"])
        assert row["updated_at"] == moment.replace(tzinfo=UTC)

    @pytest.mark.parametrize(
        ("category", "path"),
        [("A > B > C", ["A", "B", "C"]), ("A/B/C", ["A", "B", "C"]), ("A/B > C", ["A/B", "C"]), ("A", ["A"])],
    )
    def test_categories(self, lake, images, tmp_path, category, path):
        import_catalog(lake, write_csv(tmp_path / "c.csv", [GOOD | {"category": category}]), images, DAY, NOW)
        assert rows_of(lake)[0]["category"] == path

    @pytest.mark.parametrize(
        "updated_at", ["2026-11-01T10:00:00", "2026-11-01 10:00", "2026-11-01T19:00:00+09:00", "20261101T100000Z"]
    )
    def test_dates(self, lake, images, tmp_path, updated_at):
        import_catalog(lake, write_csv(tmp_path / "c.csv", [GOOD | {"updated_at": updated_at}]), images, DAY, NOW)
        assert rows_of(lake)[0]["updated_at"] == datetime(2026, 11, 1, 10, tzinfo=UTC)

    def test_a_missing_image_is_counted_and_its_row_is_kept(self, lake, images, tmp_path):
        rows = [
            GOOD,
            GOOD | {"item_id": "a2", "image": "b/nowhere.jpg"},
            GOOD | {"item_id": "a3", "image": "https://h/x.jpg"},
        ]
        imported = import_catalog(lake, write_csv(tmp_path / "c.csv", rows), images, DAY, NOW)
        assert imported.missing_images == 1
        assert len(rows_of(lake)) == 3

    def test_two_versions_of_an_item(self, lake, images, tmp_path):
        rows = [GOOD, GOOD | {"updated_at": "2026-11-01T11:00:00Z", "status": "sold"}]
        import_catalog(lake, write_csv(tmp_path / "c.csv", rows), images, DAY, NOW)
        assert [row["status"] for row in rows_of(lake)] == ["on_sale", "sold"]

    @pytest.mark.parametrize("suffix", [".csv", ".parquet"])
    def test_codes_of_seller_and_product_where_they_are_known(self, lake, tmp_path, suffix):
        base = GOOD | {"image": "gs://b/a.jpg", "price": 1980}
        rows = [
            base | {"item_id": "a", "seller_id": "s1", "product_id": "p1"},
            base | {"item_id": "b", "seller_id": "s1", "product_id": " " if suffix == ".csv" else None},
        ]
        file = tmp_path / f"c{suffix}"
        if suffix == ".csv":
            write_csv(file, rows, columns=(*GOOD, "seller_id", "product_id"))
        else:
            pq.write_table(pa.Table.from_pylist(rows), file)
        import_catalog(lake, file, None, DAY, NOW)
        assert [(row["seller_id"], row["product_id"]) for row in rows_of(lake)] == [("s1", "p1"), ("s1", None)]

    def test_codes_that_are_numbers_and_their_gaps(self, lake, tmp_path):
        rows = [GOOD | {"item_id": item, "image": "gs://b/a.jpg", "price": 1980} for item in "ab"]
        table = pa.Table.from_pylist(rows).append_column("product_id", pa.array([17.0, float("nan")]))
        pq.write_table(table, tmp_path / "c.parquet")
        import_catalog(lake, tmp_path / "c.parquet", None, DAY, NOW)
        assert [row["product_id"] for row in rows_of(lake)] == ["17", None]

    def test_further_columns_and_empty_lines_are_left_alone(self, lake, images, tmp_path):
        file = write_csv(tmp_path / "c.csv", [GOOD | {"colour": "red"}], columns=(*GOOD, "colour"))
        file.write_text(file.read_text() + "\n\n")
        import_catalog(lake, file, images, DAY, NOW)
        assert len(rows_of(lake)) == 1

    def test_empty_windows_between_are_written(self, lake, images, tmp_path):
        rows = [GOOD, GOOD | {"item_id": "a2", "updated_at": "2026-11-04T00:00:00Z"}]
        imported = import_catalog(lake, write_csv(tmp_path / "c.csv", rows), images, DAY, NOW)
        assert list(imported.windows.values()) == [1, 0, 0, 1]
        assert lake.windows(LISTINGS) == list(imported.windows)


class TestBadRows:
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            pytest.param({"item_id": ""}, "item_id", id="no id"),
            pytest.param({"item_id": "x" * 513}, "item_id: is longer than 512 bytes", id="long id"),
            pytest.param({"item_id": "a\tb"}, "item_id: has characters", id="tab in id"),
            pytest.param({"title": "  "}, "title", id="blank title"),
            pytest.param({"category": ""}, "category", id="no category"),
            pytest.param({"category": "A >  > C"}, "category", id="gap in category"),
            pytest.param({"price": "1,980"}, "price: .*'1,980'", id="price with a comma"),
            pytest.param({"price": "19.5"}, "price", id="fraction of a yen"),
            pytest.param({"price": "-1"}, "price", id="negative price"),
            pytest.param({"price": str(2**70)}, "price", id="price beyond 64 bits"),
            pytest.param({"status": "on sale"}, "status: is not one of on_sale, reserved, sold, deleted", id="status"),
            pytest.param({"created_at": "1.11.2026"}, "created_at: is not a date", id="date in another style"),
            pytest.param({"updated_at": "1793500000"}, "updated_at", id="seconds since 1970"),
            pytest.param({"updated_at": "0026-11-01"}, "updated_at: is not between", id="year 26"),
            pytest.param(
                {"updated_at": "2026-10-31"}, "updated_at is earlier than created_at", id="updated before made"
            ),
            pytest.param({"image": ""}, "image", id="no image"),
            pytest.param({"image": "../secret.jpg"}, "leads out", id="dots"),
            pytest.param({"image": "a/../../secret.jpg"}, "leads out", id="dots further on"),
            pytest.param({"image": "/etc/hostname"}, "leads out", id="absolute"),
            pytest.param({"image": "link/hostname"}, "leads out", id="symbolic link"),
            pytest.param({"image": "loop"}, "image", id="link to itself"),
            pytest.param({"image": "x" * 300}, "image", id="name too long"),
            pytest.param({"image": "a\0b"}, "image", id="null byte"),
            pytest.param({"image": "file:///etc/hostname"}, "address", id="file address"),
            pytest.param({"image": "s3://bucket/x.jpg"}, "address", id="another cloud"),
        ],
    )
    def test_is_named_with_its_line_and_nothing_is_imported(self, lake, images, tmp_path, change, reason):
        (images / "link").symlink_to("/etc")
        (images / "loop").symlink_to(images / "loop")
        file = write_csv(tmp_path / "c.csv", [GOOD, GOOD | {"item_id": "b"} | change])
        message = refusal(lake, file, images)
        assert "1 of 2 rows" in message
        assert "line 3: " in message
        assert re.search(reason, message), message

    def test_a_version_that_comes_twice(self, lake, images, tmp_path):
        rows = [GOOD, GOOD | {"updated_at": "2026-11-01T19:00:00+09:00", "title": "again"}]
        assert "line 3: item_id 'a1' with updated_at" in refusal(lake, write_csv(tmp_path / "c.csv", rows), images)

    def test_too_few_cells_and_lines_counted_over_line_breaks(self, lake, images, tmp_path):
        file = write_csv(tmp_path / "c.csv", [GOOD | {"title": "two\nlines"}])
        file.write_text(file.read_text() + "only,three,cells\n")
        assert "line 4: has not as many cells" in refusal(lake, file, images)

    def test_the_first_twenty_are_shown_and_all_are_counted(self, lake, images, tmp_path):
        rows = [GOOD | {"item_id": str(number), "price": "free"} for number in range(33)]
        message = refusal(lake, write_csv(tmp_path / "c.csv", [GOOD, *rows]), images)
        assert "33 of 34 rows" in message
        assert message.count("price: ") == 20
        assert "and 13 more" in message

    def test_a_relative_image_without_a_folder(self, lake, tmp_path):
        assert "--images" in refusal(lake, write_csv(tmp_path / "c.csv", [GOOD]), None)

    def test_in_parquet_it_has_a_row_number(self, lake, images, tmp_path):
        pq.write_table(pa.Table.from_pylist([GOOD, GOOD | {"price": None}]), tmp_path / "c.parquet")
        assert "row 2: price: " in refusal(lake, tmp_path / "c.parquet", images)


class TestBadFiles:
    @pytest.mark.parametrize("missing", GOOD)
    def test_a_missing_column(self, lake, tmp_path, missing):
        columns = [name for name in GOOD if name != missing]
        assert f"no column {missing}" in refusal(lake, write_csv(tmp_path / "c.csv", [GOOD], columns=columns))

    def test_the_nearest_name_is_suggested(self, lake, tmp_path):
        columns = [*list(GOOD)[:-1], "update_at"]
        assert "'update_at'" in refusal(lake, write_csv(tmp_path / "c.csv", [GOOD], columns=columns))

    def test_a_column_twice(self, lake, tmp_path):
        assert "price 2 times" in refusal(lake, write_csv(tmp_path / "c.csv", [GOOD], columns=[*GOOD, "price"]))

    def test_no_rows(self, lake, tmp_path):
        assert "no rows" in refusal(lake, write_csv(tmp_path / "c.csv", []))

    def test_an_empty_file(self, lake, tmp_path):
        (tmp_path / "c.csv").write_bytes(b"")
        assert "none at all" in refusal(lake, tmp_path / "c.csv")

    @pytest.mark.parametrize("encoding", ["utf-16", "cp932"])
    def test_another_encoding(self, lake, tmp_path, encoding):
        file = write_csv(tmp_path / "c.csv", [GOOD | {"title": "赤いマグ"}], encoding)
        assert "not UTF-8" in refusal(lake, file)

    def test_an_open_quotation_mark(self, lake, images, tmp_path):
        file = write_csv(tmp_path / "c.csv", [GOOD])
        file.write_text(file.read_text() + '"a2,never closed')
        assert "line 3" in refusal(lake, file, images)

    def test_parquet_that_is_none(self, lake, tmp_path):
        (tmp_path / "c.parquet").write_text("PAR?")
        assert "cannot be read as Parquet" in refusal(lake, tmp_path / "c.parquet")

    def test_another_kind_of_file(self, lake, tmp_path):
        (tmp_path / "c.xlsx").write_bytes(b"PK")
        assert "only .csv and .parquet" in refusal(lake, tmp_path / "c.xlsx")

    def test_no_file(self, lake, tmp_path):
        assert "is not a file" in refusal(lake, tmp_path / "c.csv")

    def test_no_folder(self, lake, tmp_path):
        assert "is not a folder" in refusal(lake, write_csv(tmp_path / "c.csv", [GOOD]), tmp_path / "photos")

    def test_a_span_of_too_many_windows(self, lake, images, tmp_path):
        early = GOOD | {"item_id": "b", "created_at": "1971-01-01", "updated_at": "1971-01-01"}
        message = refusal(lake, write_csv(tmp_path / "c.csv", [GOOD, early]), images, timedelta(hours=1))
        assert "1971-01-01" in message
        assert "longer --window" in message


class TestALakeInUse:
    @pytest.fixture
    def file(self, tmp_path):
        return write_csv(tmp_path / "c.csv", [GOOD])

    @pytest.fixture
    def used(self, lake, file, images):
        import_catalog(lake, file, images, DAY, NOW)
        return lake

    def test_a_window_that_holds_something_is_kept(self, used, images, tmp_path):
        other = write_csv(tmp_path / "d.csv", [GOOD | {"title": "Blue mug"}])
        with pytest.raises(LensError, match="--replace"):
            import_catalog(used, other, images, DAY, NOW)
        assert rows_of(used)[0]["title"] == "Red mug"
        import_catalog(used, other, images, DAY, NOW, replace=True)
        assert [row["title"] for row in rows_of(used)] == ["Blue mug"]

    def test_windows_of_another_length_never_overlap(self, used, file, images):
        with pytest.raises(LensError, match="--window"):
            import_catalog(used, file, images, timedelta(hours=1), NOW, replace=True)

    def test_a_later_file_goes_beside(self, used, images, tmp_path):
        later = write_csv(tmp_path / "d.csv", [GOOD | {"updated_at": "2026-11-02T00:00:00Z"}])
        import_catalog(used, later, images, DAY, NOW)
        assert len(rows_of(used)) == 2

    def test_an_empty_window_can_be_filled(self, lake, images, tmp_path):
        rows = [GOOD, GOOD | {"updated_at": "2026-11-03T00:00:00Z"}]
        import_catalog(lake, write_csv(tmp_path / "c.csv", rows), images, DAY, NOW)
        between = write_csv(tmp_path / "d.csv", [GOOD | {"updated_at": "2026-11-02T00:00:00Z"}])
        import_catalog(lake, between, images, DAY, NOW)
        assert len(rows_of(lake)) == 3


@pytest.mark.parametrize(
    ("text", "step"), [("1d", DAY), ("6h", timedelta(hours=6)), ("30m", timedelta(minutes=30)), ("7d", 7 * DAY)]
)
def test_steps(text, step):
    assert read_step(text) == step


@pytest.mark.parametrize("text", ["", "1", "d", "0h", "-1d", "1w", "1.5h", "1d "])
def test_steps_refused(text):
    with pytest.raises(LensError, match="--window"):
        read_step(text)


moments = st.datetimes(datetime(2026, 1, 1), datetime(2026, 1, 20), timezones=st.just(UTC))  # noqa: DTZ001
words = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12)


@settings(max_examples=40)
@given(
    rows=st.dictionaries(st.tuples(words, moments), st.tuples(words, st.integers(0, 10**9)), min_size=1, max_size=12),
    step=st.sampled_from([timedelta(hours=5), timedelta(hours=12), DAY, 7 * DAY]),
)
def test_what_goes_in_comes_out_each_row_in_its_window(rows, step):
    given_rows = [
        GOOD
        | {
            "item_id": item,
            "title": title,
            "price": price,
            "image": "https://h/i.jpg",
            "created_at": moment.isoformat(),
            "updated_at": moment.isoformat(),
        }
        for (item, moment), (title, price) in rows.items()
    ]
    with TemporaryDirectory() as folder:
        lake = Lake(f"{folder}/lake")
        file = write_csv(Path(folder) / "c.csv", given_rows)
        imported = import_catalog(lake, file, None, step, NOW)

        windows = lake.windows(LISTINGS)
        assert windows == list(imported.windows)
        assert gaps(type(windows[0])(windows[0].start, windows[-1].end), windows) == []
        assert all(window.end - window.start == step for window in windows)
        found = {}
        for window in windows:
            read = [row for batch in lake.read(LISTINGS, [window]) for row in batch.to_pylist()]
            assert imported.windows[window] == lake.manifest(LISTINGS, window).counts["rows"] == len(read)
            assert all(row["updated_at"] in window for row in read)
            found |= {(row["item_id"], row["updated_at"]): (row["title"], row["price"]) for row in read}
        assert found == rows
        assert all(imported.windows[window] for window in (windows[0], windows[-1]))


def test_memory_does_not_grow_with_the_file(lake, tmp_path):
    def peak(count):
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, GOOD)
        writer.writeheader()
        for number in range(count):
            minute = f"2026-11-01T{number // 60 % 24:02d}:{number % 60:02d}:00Z"
            changed = {"item_id": f"i{number}", "image": "https://h/i.jpg", "created_at": minute, "updated_at": minute}
            writer.writerow(GOOD | changed)
        file = tmp_path / f"{count}.csv"
        file.write_text(buffer.getvalue())
        del buffer, writer
        tracemalloc.start()
        import_catalog(lake, file, None, DAY, NOW, replace=True)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    small, large = peak(5_000), peak(15_000)
    assert large < small * 1.3
    assert rows_of(lake)[0].keys() == set(LISTING_SCHEMA.names)


def test_the_command(tmp_path, images, monkeypatch):
    monkeypatch.setenv("LENS_LAKE", str(tmp_path / "lake"))
    monkeypatch.setenv("LENS_HOME", str(tmp_path / "home"))
    file = write_csv(tmp_path / "c.csv", [GOOD, GOOD | {"item_id": "b", "image": "gone.jpg"}])
    result = CliRunner().invoke(app, ["import", str(file), "--images", str(images), "--window", "1h"])
    assert result.exit_code == 0, result.output
    assert "2026-11-01 10:00" in result.output
    assert "1 rows" in result.output
