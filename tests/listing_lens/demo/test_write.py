"""`lens catalog make` writes the same bytes however it is run, and never over somebody's listings unasked."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image, ImageOps
from tiny import listing
from typer.testing import CliRunner

from listing_lens.cli.catalog import app
from listing_lens.demo.plan import DemoSpec
from listing_lens.demo.write import TRUE_LISTINGS, TRUE_SESSIONS, make_catalog
from listing_lens.errors import LensError
from listing_lens.lake.records import LISTING_SCHEMA, SESSION_SCHEMA, to_table
from listing_lens.lake.window import Window
from listing_lens.lake.windows import LISTINGS, SESSIONS, Lake

NOW = datetime(2026, 12, 1, tzinfo=UTC)
SPEC = DemoSpec(listings=24, days=2, sessions=6)


def make(root, spec=SPEC, **options):
    lake = Lake(str(root))
    lake.check()
    make_catalog(lake, spec, NOW, **{"workers": 1, **options})
    return lake


def table(lake, dataset):
    batches = list(lake.read(dataset, lake.windows(dataset)))
    return pa.Table.from_batches(batches) if batches else pa.table({})


def photos(root):
    """The checksum of every image by its path."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in ("images", "queries")
        for path in sorted(Path(root, folder).rglob("*"))
        if path.is_file()
    }


def contents(lake):
    datasets = (LISTINGS, SESSIONS, TRUE_LISTINGS, TRUE_SESSIONS)
    return photos(lake.root), {dataset: table(lake, dataset).to_pylist() for dataset in datasets}


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    return make(tmp_path_factory.mktemp("made"))


def test_again_and_with_more_workers_it_gives_the_same_bytes(lake, tmp_path):
    before = contents(lake)
    again = make(lake.root)
    assert contents(again) == before
    assert contents(make(tmp_path, workers=2)) == before


def test_another_seed_gives_other_photos(lake, tmp_path):
    other = photos(make(tmp_path, DemoSpec(listings=3, days=1, sessions=0, seed=8)).root)
    assert other
    assert not set(other.values()) & set(photos(lake.root).values())


def test_schemas_windows_and_roots(lake):
    assert lake.windows(LISTINGS) == lake.windows(SESSIONS) == SPEC.windows
    assert table(lake, LISTINGS).schema.equals(LISTING_SCHEMA)
    assert table(lake, SESSIONS).schema.equals(SESSION_SCHEMA)
    for window in SPEC.windows:
        assert lake.manifest(LISTINGS, window).image_root == f"{lake.root}/images"
        assert lake.manifest(SESSIONS, window).image_root == f"{lake.root}/queries"
        batches = list(lake.read(LISTINGS, [window]))
        assert all(row["updated_at"] in window for batch in batches for row in batch.to_pylist())


def test_every_photo_that_is_named_is_there_and_opens_unless_broken(lake):
    truth = {(row["item_id"], row["updated_at"]): row for row in table(lake, TRUE_LISTINGS).to_pylist()}
    listings = table(lake, LISTINGS).to_pylist()
    assert len(truth) == len(listings)
    for row in listings:
        path = Path(lake.root, "images", row["image_uri"])
        assert path.is_file()
        if truth[row["item_id"], row["updated_at"]]["breakage"] is None:
            with Image.open(path) as image:
                image.load()
                assert 640 <= max(image.size) <= 1440
                assert ImageOps.exif_transpose(image) is not None
    for row in table(lake, SESSIONS).to_pylist():
        with Image.open(Path(lake.root, "queries", row["query_image_uri"])) as image:
            image.load()


def test_progress_reaches_its_total(tmp_path):
    seen = []
    make(tmp_path, DemoSpec(listings=4, days=1, sessions=1), progress=lambda done, total: seen.append((done, total)))
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1] >= 5
    assert seen == sorted(seen)


class TestALakeInUse:
    """What is there already is kept, unless told otherwise."""

    @pytest.fixture
    def used(self, tmp_path):
        return make(tmp_path, DemoSpec(listings=3, days=2, sessions=0))

    def test_is_refused_and_left_as_it_was(self, used):
        before = contents(used)
        with pytest.raises(LensError, match="--replace"):
            make(used.root, DemoSpec(listings=4, days=1, sessions=0))
        assert contents(used) == before

    def test_is_written_over_when_asked_and_what_is_left_over_is_emptied(self, used):
        smaller = DemoSpec(listings=4, days=1, sessions=0)
        make(used.root, smaller, replace=True)
        assert used.manifest(LISTINGS, smaller.windows[0]).counts["rows"] == table(used, LISTINGS).num_rows == 4
        make(used.root, smaller)

    def test_an_import_counts_as_in_use(self, tmp_path):
        lake = Lake(str(tmp_path))
        window = Window(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC))
        lake.write_table(LISTINGS, window, to_table([listing("x", window)], LISTING_SCHEMA), NOW)
        with pytest.raises(LensError, match="2026-01-01"):
            make(tmp_path)


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("LENS_LAKE", str(tmp_path / "lake"))
    monkeypatch.setenv("LENS_HOME", str(tmp_path / "home"))
    arguments = ["make", "--listings", "3", "--days", "1", "--sessions", "1", "--seed", "5", "--start", "2026-05-01"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "2026-05-01" in result.output
    assert len(Lake(str(tmp_path / "lake")).windows(LISTINGS)) == 1
