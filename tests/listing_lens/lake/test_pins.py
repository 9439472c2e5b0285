"""The pin of a space: there is one, whoever was first, in a folder and on Cloud Storage."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier

import pytest
from conditional_storage import Storage

from listing_lens.errors import LensError
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.pins import Pin, Pins
from listing_lens.lake.windows import Lake
from models.encoders.runtime import Backend
from models.encoders.trials import Calibration, Recall, Trial

NOW = datetime(2026, 11, 5, tzinfo=UTC)


def calibration(host: str, chosen: Backend = Backend.OPENVINO_INT8) -> Calibration:
    trial = Trial(backend=chosen, images_per_s=10.0, recall=Recall(own=1, queried=1, mixed=0.995), least_cosine=0.98)
    return Calibration(encoder_id="e-01234567", host=host, images=1000, chosen=chosen, trials=(trial,))


@pytest.fixture(params=["folder", "cloud"])
def pins(request: pytest.FixtureRequest, tmp_path: Path) -> Pins:
    in_cloud = request.param == "cloud"
    root = f"gs://{request.getfixturevalue('bucket').name}/lake" if in_cloud else str(tmp_path / "lake")
    return Pins(Embeddings(Lake(root), "e-01234567"))


@pytest.fixture
def local_pins(tmp_path: Path) -> Pins:
    return Pins(Embeddings(Lake(str(tmp_path / "lake")), "e-01234567"))


def made(folder: Path, content: str) -> Path:
    folder.mkdir()
    (folder / "graph.xml").write_text(content)
    (folder / "graph.bin").write_bytes(b"\0" * 100)
    return folder


def test_there_is_none_at_first(pins: Pins) -> None:
    assert pins.get() is None


def test_is_read_as_it_was_written_with_what_it_computes_by(pins: Pins, tmp_path: Path) -> None:
    pin = pins.create(calibration("a"), made(tmp_path / "made", "<a/>"), NOW)
    assert pins.get() == pin
    assert (pin.backend, pin.calibration, pin.pinned_at) == ("openvino-int8", calibration("a"), NOW)
    assert pin.files is not None
    for _ in range(2):
        there = pins.embeddings.lake.on_this_machine(pins.files_of(pin.files), tmp_path / "cache")
        assert {path.name: path.read_bytes() for path in there.iterdir()} == {
            "graph.xml": b"<a/>",
            "graph.bin": b"\0" * 100,
        }


def test_to_float32_needs_no_files(pins: Pins, tmp_path: Path) -> None:
    pin = pins.create(calibration("a", Backend.FLOAT32), tmp_path / "none", NOW)
    assert (pin.backend, pin.files) == ("float32", None)
    assert pins.get() == pin


def test_the_first_of_several_wins_and_the_others_leave_nothing(local_pins: Pins, tmp_path: Path) -> None:
    pins, together = local_pins, Barrier(6)
    folders = [made(tmp_path / f"made-{n}", f"<a{n}/>") for n in range(6)]

    def create(number: int) -> Pin:
        together.wait()
        return pins.create(calibration(f"host {number}"), folders[number], NOW)

    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(create, range(6)))
    assert len({pin.model_dump_json() for pin in found}) == 1
    assert pins.get() == found[0]
    assert pins.embeddings.lake.folders(f"{pins.embeddings.folder}/backends") == [found[0].files]
    winner = int(found[0].calibration.host.removeprefix("host "))
    assert found[0].files is not None
    there = pins.embeddings.lake.on_this_machine(pins.files_of(found[0].files), tmp_path / "cache")
    assert (there / "graph.xml").read_text() == f"<a{winner}/>"


def test_a_later_one_changes_nothing(local_pins: Pins, tmp_path: Path) -> None:
    first = local_pins.create(calibration("a"), made(tmp_path / "one", "<a/>"), NOW)
    assert local_pins.create(calibration("b", Backend.FLOAT32), tmp_path / "none", NOW) == first


def test_what_cannot_be_read_is_not_overlooked(pins: Pins) -> None:
    pins.embeddings.lake.write_bytes(pins.path, b'{"backend": "magic"}')
    with pytest.raises(LensError, match=r"backend\.json is no pin of this version .*: remove it, and embed in float32"):
        pins.get()


def test_a_file_that_is_created_once_is_whole(tmp_path: Path) -> None:
    lake, path = Lake(str(tmp_path)), f"{tmp_path}/a/b.json"
    assert lake.create_once(path, b"first")
    assert not lake.create_once(path, b"second")
    assert lake.read_bytes(path) == b"first"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]


def test_on_cloud_storage_it_is_created_on_condition_that_it_is_not_there(cloud: Storage) -> None:
    lake, path = Lake("gs://bucket/lake"), "gs://bucket/lake/a/b.json"
    assert lake.create_once(path, b"first")
    assert not lake.create_once(path, b"second")
    assert cloud.objects["bucket/lake/a/b.json"][0] == b"first"
    assert cloud.writes == [("bucket/lake/a/b.json", 0)]
