"""Embedding a window: nothing is lost without a word, a window is all or nothing, a bad image costs one image."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from tiny import FIRST, SECOND, image_root, land, land_marketplace, listing, take_photo

from beam_jobs import fit_projection
from beam_jobs.embed_listings import main
from beam_jobs.launcher import refusal
from listing_lens.errors import LensError
from listing_lens.lake.fits import load_fit
from listing_lens.lake.records import Status, embedding_matrix
from listing_lens.lake.window import Window
from listing_lens.lake.windows import DEAD_LETTERS, REMOVED, ROWS, Lake, embeddings
from models.encoders.encoder import Encoder, shared_encoder
from models.encoders.files import identify
from models.encoders.untrained_siglip import save_untrained_siglip
from models.images import ImageLimits, decode_image
from models.registry import Registry


def _arguments(window: Window) -> list[str]:
    return ["--window_start", window.start.isoformat(), "--window_end", window.end.isoformat()]


@pytest.fixture
def dataset(lake: Lake, untrained_siglip: Path) -> str:
    return embeddings(shared_encoder(str(untrained_siglip)).encoder_id)


def _items(lake: Lake, dataset: str, window: Window, kind: str = ROWS) -> list[str]:
    return sorted(
        item for batch in lake.read(dataset, [window], ["item_id"], kind=kind) for item in batch[0].to_pylist()
    )


def test_every_listing_is_embedded_removed_or_set_aside(lake: Lake, dataset: str) -> None:
    land_marketplace(lake)
    main(_arguments(FIRST))
    counts = lake.manifest(dataset, FIRST).counts
    assert counts == {
        "read": 20,
        "newest": 20,
        "embedded": 18,
        "removed": 1,
        "dead_lettered": 1,
        "encoded": 18,
    }
    assert _items(lake, dataset, FIRST, REMOVED) == ["m003"]
    [dead] = [row for batch in lake.read(dataset, [FIRST], kind=DEAD_LETTERS) for row in batch.to_pylist()]
    assert dead == {"item_id": "m002", "stage": "decode", "reason": "not an image of a supported format"}
    assert len(_items(lake, dataset, FIRST)) == 18


def test_embeddings_are_the_encoder_s_own(lake: Lake, dataset: str, untrained_siglip: Path) -> None:
    land_marketplace(lake)
    main(_arguments(SECOND))
    encoder = Encoder.load(str(untrained_siglip))
    limits = ImageLimits(10**7, 10**7)
    for batch in lake.read(dataset, [SECOND]):
        for row, embedding in zip(batch.to_pylist(), embedding_matrix(batch), strict=True):
            image = decode_image(Path(row["image_uri"]).read_bytes(), limits, min_side=encoder.image_side)
            # As exactly as float16 keeps it.
            np.testing.assert_allclose(embedding, encoder.embed([image])[0], atol=2e-4)
            assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-3)


def test_the_same_bytes_are_encoded_once(lake: Lake, dataset: str) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        take_photo(lake, f"{name}.jpg", seed)
    rows = [listing(f"{name}{n}", image_uri=f"{name}.jpg") for name in "abc" for n in range(20)]
    land(lake, FIRST, rows)
    main(_arguments(FIRST))
    counts = lake.manifest(dataset, FIRST).counts
    assert (counts["embedded"], counts["encoded"]) == (60, 2)
    found = {
        row["item_id"]: embedding
        for batch in lake.read(dataset, [FIRST])
        for row, embedding in zip(batch.to_pylist(), embedding_matrix(batch), strict=True)
    }
    assert sorted(found) == sorted(row.item_id for row in rows)
    for name, same in (("a", "b7"), ("b", "a3"), ("c", "c0")):
        np.testing.assert_array_equal(found[f"{name}11"], found[same])
    assert found["a0"] @ found["c0"] < 0.999


def test_the_manifest_says_how_each_host_computed(
    lake: Lake, dataset: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LENS_ENCODER_BACKENDS", '["bfloat16"]')
    land_marketplace(lake)
    main(_arguments(FIRST))
    [calibration] = lake.manifest(dataset, FIRST).parameters["calibrations"]
    assert calibration["chosen"] == "bfloat16"
    [trial] = calibration["trials"]
    assert trial["least_cosine"] >= 0.999
    monkeypatch.setenv("LENS_ENCODER_BACKENDS", '["float32"]')
    main(_arguments(SECOND))
    assert lake.manifest(dataset, SECOND).parameters["calibrations"] == []


def test_an_image_has_one_embedding_whatever_its_window_and_batch(
    lake: Lake, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcde":
        take_photo(lake, f"{name}.jpg", ord(name))
    land(lake, FIRST, [listing(name) for name in "abcde"])
    land(lake, SECOND, [listing("e", SECOND)])
    main(_arguments(FIRST))
    monkeypatch.setenv("LENS_ENCODER_BATCH_SIZE", "2")
    main(_arguments(SECOND))
    [first] = lake.read(dataset, [FIRST])
    [second] = lake.read(dataset, [SECOND])
    place = first.column("item_id").to_pylist().index("e")
    np.testing.assert_allclose(embedding_matrix(first)[place], embedding_matrix(second)[0], atol=1e-6)


def test_a_window_run_again_is_the_same(lake: Lake, dataset: str) -> None:
    land_marketplace(lake)
    main(_arguments(FIRST))
    before, items = lake.manifest(dataset, FIRST), _items(lake, dataset, FIRST)
    main(_arguments(FIRST))
    after = lake.manifest(dataset, FIRST)
    assert after.counts == before.counts
    assert after.files != before.files
    assert _items(lake, dataset, FIRST) == items


def test_the_newest_version_in_a_window_is_kept(lake: Lake, dataset: str) -> None:
    take_photo(lake, "a.jpg", 1)
    old, new = listing("a", minute=1), listing("a", minute=2, price=900)
    land(lake, FIRST, [new, old])
    main(_arguments(FIRST))
    [row] = [row for batch in lake.read(dataset, [FIRST]) for row in batch.to_pylist()]
    assert row["price"] == 900
    assert lake.manifest(dataset, FIRST).counts["read"] == 2


def test_only_listings_updated_in_the_window_are_read(lake: Lake, dataset: str) -> None:
    for name in ("a", "b"):
        take_photo(lake, f"{name}.jpg", 1)
    land(lake, FIRST, [listing("a", minute=30), listing("b", minute=90)])
    hour = Window(FIRST.start, FIRST.start + timedelta(hours=1))
    main(_arguments(hour))
    assert _items(lake, dataset, hour) == ["a"]


def test_an_empty_window_is_a_valid_window(lake: Lake, dataset: str) -> None:
    land(lake, FIRST, [])
    main(_arguments(FIRST))
    assert lake.windows(dataset) == [FIRST]
    assert sum(lake.manifest(dataset, FIRST).counts.values()) == 0


def test_listings_that_have_not_landed_are_no_empty_window(lake: Lake, dataset: str) -> None:
    land(lake, FIRST, [])
    with pytest.raises(LensError, match=r"listings of \[2026-11-02 .* have not landed .*lens catalog import"):
        main(_arguments(Window(FIRST.start, SECOND.end)))
    assert lake.windows(dataset) == []


def test_too_many_bad_images_fail_the_window_and_leave_nothing(lake: Lake, dataset: str) -> None:
    take_photo(lake, "a.jpg", 1)
    for broken in ("b", "c"):
        lake.write_bytes(f"{image_root(lake)}/{broken}.jpg", b"")
    land(lake, FIRST, [listing(name) for name in "abc"])
    with pytest.raises(Exception, match="LENS_MAX_DEAD_LETTER_RATIO=0.1") as failure:
        main(_arguments(FIRST))
    sentence = refusal(failure.value) or ""
    assert sentence.startswith("window [2026-11-01 00:00:00Z, 2026-11-02 00:00:00Z): 2 of 3 images")
    assert sentence.endswith("mostly: empty file (2)")
    assert lake.windows(dataset) == []


def test_a_run_that_fails_leaves_the_window_as_it_was(
    lake: Lake, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    land_marketplace(lake)
    main(_arguments(FIRST))
    before, items = lake.manifest(dataset, FIRST), _items(lake, dataset, FIRST)

    def broken(*_: object) -> None:
        raise RuntimeError("the machine is on fire")

    monkeypatch.setattr(Encoder, "encode", broken)
    with pytest.raises(RuntimeError, match="on fire"):
        main(_arguments(FIRST))
    assert lake.manifest(dataset, FIRST) == before
    assert _items(lake, dataset, FIRST) == items


def test_one_bad_image_does_not_fail_a_window_of_few(lake: Lake, dataset: str) -> None:
    take_photo(lake, "a.jpg", 1)
    land(lake, FIRST, [listing("a"), listing("gone")])
    main(_arguments(FIRST))
    [dead] = [row for batch in lake.read(dataset, [FIRST], kind=DEAD_LETTERS) for row in batch.to_pylist()]
    assert dead == {"item_id": "gone", "stage": "fetch", "reason": "cannot be read: no such file"}


def test_a_window_embedded_in_parts_is_not_embedded_again(lake: Lake, dataset: str) -> None:
    take_photo(lake, "a.jpg", 1)
    land(lake, FIRST, [listing("a", minute=30)])
    halves = list(FIRST.split(timedelta(hours=12)))
    for half in halves:
        main(_arguments(half))
    main([*_arguments(FIRST), "--each_landed"])
    assert lake.windows(dataset) == halves


def test_an_image_outside_the_allowed_places_is_set_aside_unread(lake: Lake, dataset: str, tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"x")
    rows = [listing("a", image_uri=str(tmp_path / "secret.jpg"), minute=1)]
    rows += [listing(f"b{n}", image_uri="ok.jpg") for n in range(30)]
    take_photo(lake, "ok.jpg", 1)
    land(lake, FIRST, rows)
    main(_arguments(FIRST))
    [dead] = [row for batch in lake.read(dataset, [FIRST], kind=DEAD_LETTERS) for row in batch.to_pylist()]
    assert "outside the folders" in dead["reason"]


def test_an_address_that_climbs_out_of_its_root_is_set_aside_alone(lake: Lake, dataset: str) -> None:
    take_photo(lake, "ok.jpg", 1)
    rows = [listing("a", image_uri="../secret.jpg"), *(listing(f"b{n}", image_uri="ok.jpg") for n in range(30))]
    land(lake, FIRST, rows)
    main(_arguments(FIRST))
    counts = lake.manifest(dataset, FIRST).counts
    assert (counts["embedded"], counts["dead_lettered"]) == (30, 1)


def test_each_landed_embeds_what_is_missing_window_by_window(lake: Lake, dataset: str) -> None:
    land_marketplace(lake)
    main(_arguments(FIRST))
    before = lake.manifest(dataset, FIRST)
    main([*_arguments(Window(FIRST.start, SECOND.end)), "--each_landed"])
    assert lake.windows(dataset) == [FIRST, SECOND]
    assert lake.manifest(dataset, FIRST) == before


def test_each_landed_needs_no_window(lake: Lake, dataset: str) -> None:
    land_marketplace(lake)
    main(["--each_landed"])
    assert lake.windows(dataset) == [FIRST, SECOND]


@pytest.mark.parametrize("arguments", [[], ["--encoder", "pixels:2"]])
def test_a_run_without_a_window_is_not_of_all_of_them(
    lake: Lake, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    land_marketplace(lake)
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "--window_start and --window_end are required without --each_landed" in capsys.readouterr().err


def test_an_encoder_of_mlflow_is_the_one_that_was_registered(
    lake: Lake, mlflow_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LENS_MLFLOW_URL", mlflow_url)
    trained = save_untrained_siglip(tmp_path / "trained", seed=3)
    registry = Registry.connect(mlflow_url)
    version = registry.register_encoder(
        registry.start_finetuning("training", {}, key=str(tmp_path)),
        trained,
        encoder_id=identify(str(trained)),
        source=str(trained),
        parent_id="parent-12345678",
        parent_source="google/parent",
        pairs_fingerprint="0123456789abcdef",
    )
    land_marketplace(lake)
    source = f"models:/listing-encoder/{version}"
    main(["--each_landed", "--encoder", source])
    trained_dataset = embeddings(identify(str(trained)))
    assert lake.windows(trained_dataset) == [FIRST, SECOND]
    assert lake.manifest(trained_dataset, FIRST).parameters["encoder_source"] == str(trained)
    fit_projection.main(["--name", "trained", "--encoder", source])
    card = load_fit(lake, "trained").card
    assert (card.encoder_source, card.encoder_id) == (str(trained), identify(str(trained)))


def test_a_baseline_is_an_encoder_like_any(lake: Lake) -> None:
    land_marketplace(lake)
    main([*_arguments(FIRST), "--encoder", "pixels:4"])
    [batch] = lake.read(embeddings("pixels-4"), [FIRST])
    assert embedding_matrix(batch).shape == (18, 48)


def test_an_unknown_encoder_is_named(lake: Lake) -> None:
    land(lake, FIRST, [])
    with pytest.raises(LensError, match="nobody/nothing"):
        main([*_arguments(FIRST), "--encoder", "nobody/nothing"])


def test_a_sold_listing_s_photo_is_not_even_read(lake: Lake, dataset: str) -> None:
    land(lake, FIRST, [replace(listing("gone"), status=Status.DELETED, image_uri="no-such.jpg")])
    main(_arguments(FIRST))
    assert Counter(lake.manifest(dataset, FIRST).counts) == Counter(
        read=1, newest=1, removed=1, embedded=0, dead_lettered=0, encoded=0
    )
