"""Loading and verifying an index on a real node: what the lake holds is what is found, whatever the order of writes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from tiny import FIRST, SECOND, Indexed, land, listing, take_photo

from beam_jobs import embed_listings, fit_projection, load_index, verify_index
from beam_jobs.launcher import refusal
from listing_lens.errors import LensError
from listing_lens.lake.fits import load_fit, load_projection
from listing_lens.lake.records import LISTING_SCHEMA, Status, embedding_matrix, to_table
from listing_lens.lake.window import Window
from listing_lens.lake.windows import LISTINGS, embeddings
from listing_lens.search.index import Index, SearchIndex
from listing_lens.search.loads import loads_of
from listing_lens.settings import load_settings
from models.encoders.untrained_siglip import save_untrained_siglip

_THIRD = Window(SECOND.end, SECOND.end + timedelta(days=1))


def _bounds(window: Window) -> list[str]:
    return ["--window_start", window.start.isoformat(), "--window_end", window.end.isoformat()]


def _counts(indexed: Indexed) -> dict[str, int]:
    indexed.search_index.finish_load(indexed.index.name)
    return indexed.search_index.counts(indexed.index.name)


def test_all_that_the_lake_holds_is_found(indexed: Indexed) -> None:
    load_index.main(["--index", indexed.index.name])
    verify_index.main(["--index", indexed.index.name])
    # 40 items: one broken, one sold from the start, one sold in the second window.
    assert _counts(indexed) == {"searchable": 37, "removed": 2}
    projection = load_projection(indexed.lake, indexed.index.card.projection_id, indexed.index.card.encoder_id)
    for batch in indexed.lake.read(embeddings(indexed.index.card.encoder_id), [SECOND]):
        vectors = projection.apply(embedding_matrix(batch))
        for item_id, vector in list(zip(batch.column("item_id").to_pylist(), vectors, strict=True))[:5]:
            best = indexed.search_index.search(indexed.index, vector, 1)[0]
            assert best.item_id == item_id
            assert best.score == pytest.approx(1, abs=1e-4)


def test_a_load_repeated_changes_nothing(indexed: Indexed) -> None:
    load_index.main(["--index", indexed.index.name])
    before = _counts(indexed)
    load_index.main(["--index", indexed.index.name])
    assert _counts(indexed) == before
    verify_index.main(["--index", indexed.index.name])


def test_windows_load_in_any_order_and_a_replay_brings_nothing_back(indexed: Indexed) -> None:
    load_index.main(["--index", indexed.index.name, *_bounds(SECOND)])
    load_index.main(["--index", indexed.index.name, *_bounds(FIRST)])
    held = indexed.search_index.versions(indexed.index.name, ["m001"])
    assert held["m001"][1] == "sold"
    assert _counts(indexed) == {"searchable": 37, "removed": 2}
    verify_index.main(["--index", indexed.index.name])


@pytest.fixture
def other_encoder(tmp_path: Path) -> str:
    return str(save_untrained_siglip(tmp_path / "other-siglip", seed=1))


@pytest.fixture
def other_index(indexed: Indexed, other_encoder: str) -> Index:
    """An empty index of another encoder, which has embedded the marketplace too."""
    embed_listings.main(["--each_landed", "--encoder", other_encoder])
    fit_projection.main(["--name", "other", "--encoder", other_encoder])
    return indexed.search_index.create(load_fit(indexed.lake, "other").card, "other")


def _land_third(indexed: Indexed) -> None:
    take_photo(indexed.lake, "late.jpg", 99)
    land(indexed.lake, _THIRD, [listing("late", _THIRD)])


def _held(indexed: Indexed, index: Index, *item_ids: str) -> list[str]:
    return list(indexed.search_index.versions(index.name, item_ids))


def _nearest(indexed: Indexed, index: Index, item_id: str, window: Window) -> str:
    """What a search finds that is given the item's own vector, in the index's space."""
    indexed.search_index.finish_load(index.name)
    for batch in indexed.lake.read(embeddings(index.card.encoder_id), [window]):
        row = batch.column("item_id").to_pylist().index(item_id)
        vector = load_projection(indexed.lake, index.card.projection_id, index.card.encoder_id).apply(
            embedding_matrix(batch)
        )[row]
        [hit] = indexed.search_index.search(index, vector, 1)
        assert hit.score == pytest.approx(1, abs=1e-4)
    return hit.item_id


class TestWithoutAnIndex:
    def test_every_one_of_an_encoder_is_fed(self, indexed: Indexed) -> None:
        other = indexed.search_index.create(indexed.index.card, "two")
        _land_third(indexed)
        embed_listings.main(_bounds(_THIRD))
        load_index.main(_bounds(_THIRD))
        for index in (indexed.index, other):
            assert _held(indexed, index, "late", "m000") == ["late"]

    def test_each_is_fed_from_its_own_encoder(self, indexed: Indexed, other_index: Index, other_encoder: str) -> None:
        assert other_index.card.encoder_id != indexed.index.card.encoder_id
        indexed.search_index.swap(indexed.index.name)
        _land_third(indexed)
        for encoder in (indexed.index.card.encoder_source, other_encoder):
            embed_listings.main([*_bounds(_THIRD), "--encoder", encoder])
        load_index.main(_bounds(_THIRD))
        for index in (indexed.index, other_index):
            assert _held(indexed, index, "late", "m000") == ["late"]
            assert _nearest(indexed, index, "late", _THIRD) == "late"

    def test_one_whose_encoder_lacks_the_window_is_passed_over(
        self, indexed: Indexed, other_index: Index, caplog: pytest.LogCaptureFixture
    ) -> None:
        indexed.search_index.swap(indexed.index.name)
        _land_third(indexed)
        embed_listings.main(_bounds(_THIRD))
        load_index.main(_bounds(_THIRD))
        assert _held(indexed, indexed.index, "late") == ["late"]
        assert _held(indexed, other_index, "late") == []
        assert f"index {other_index.name} does not get window {_THIRD}" in caplog.text

    def test_the_live_one_is_not_passed_over(self, indexed: Indexed, other_index: Index, other_encoder: str) -> None:
        indexed.search_index.swap(other_index.name)
        _land_third(indexed)
        embed_listings.main(_bounds(_THIRD))
        with pytest.raises(LensError, match=f"index {other_index.name} would lack it: .*--encoder {other_encoder}"):
            load_index.main(_bounds(_THIRD))
        assert _held(indexed, indexed.index, "late") == []

    def test_an_encoder_narrows_it(self, indexed: Indexed, other_index: Index, other_encoder: str) -> None:
        # The live index is of the first encoder, which has not embedded the window.
        indexed.search_index.swap(indexed.index.name)
        _land_third(indexed)
        embed_listings.main([*_bounds(_THIRD), "--encoder", other_encoder])
        load_index.main([*_bounds(_THIRD), "--encoder", other_encoder])
        assert _held(indexed, other_index, "late") == ["late"]
        assert _held(indexed, indexed.index, "late") == []

    def test_there_may_be_none(self, indexed: Indexed, caplog: pytest.LogCaptureFixture) -> None:
        indexed.search_index.delete(indexed.index.name)
        with caplog.at_level("INFO"):
            load_index.main(_bounds(FIRST))
        assert "there is no index to load into" in caplog.text


def test_a_rebuild_catches_up_with_what_landed_or_was_replaced_meanwhile(indexed: Indexed) -> None:
    load_index.main(["--index", indexed.index.name])
    take_photo(indexed.lake, "late.jpg", 99)
    land(indexed.lake, _THIRD, [listing("late", _THIRD)])
    embed_listings.main(_bounds(_THIRD))
    embed_listings.main(_bounds(SECOND))
    load_index.main(["--index", indexed.index.name, "--catch_up"])
    last = max(loads_of(indexed.lake, indexed.index.name), key=lambda load: load.started_at)
    assert last.windows == [SECOND.name, _THIRD.name]
    load_index.main(["--index", indexed.index.name, "--catch_up"])
    last = max(loads_of(indexed.lake, indexed.index.name), key=lambda load: load.started_at)
    assert last.windows == []
    verify_index.main(["--index", indexed.index.name])


def test_another_alias_whose_name_begins_alike_is_left_alone(indexed: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENS_ALIAS", f"{indexed.search_index.alias}-staging")
    staging = SearchIndex.connect(load_settings())
    other = staging.create(indexed.index.card, "one")
    try:
        monkeypatch.setenv("LENS_ALIAS", indexed.search_index.alias)
        load_index.main(_bounds(FIRST))
        assert indexed.search_index.versions(indexed.index.name, ["m000"])
        assert not staging.versions(other.name, ["m000"])
    finally:
        staging.delete(other.name)


def test_a_window_that_is_not_embedded_is_no_empty_load(indexed: Indexed) -> None:
    with pytest.raises(LensError, match="window .2026-11-03 .* is not embedded by .* would lack it"):
        load_index.main(["--index", indexed.index.name, *_bounds(_THIRD)])


def test_an_unknown_index_is_named(indexed: Indexed) -> None:
    with pytest.raises(LensError, match="there is no index 'nothing'"):
        load_index.main(["--index", "nothing"])


def test_an_index_of_another_dimension_is_refused(indexed: Indexed) -> None:
    card = indexed.index.card
    name = f"{indexed.search_index.alias}-crooked"
    indexed.search_index.client.indices.create(
        index=name,
        mappings={
            "_meta": {"card": card.model_dump(), "build": "x"},
            "properties": {"vector": {"type": "dense_vector", "dims": card.dims + 1}},
        },
    )
    try:
        with pytest.raises(LensError, match="holds 9 dimensions but its space .* has 8: rebuild it"):
            load_index.main(["--index", name])
    finally:
        indexed.search_index.client.indices.delete(index=name)


def test_verification_names_what_is_missing(indexed: Indexed) -> None:
    load_index.main(["--index", indexed.index.name])
    indexed.search_index.client.delete(index=indexed.index.name, id="m010")
    with pytest.raises(Exception, match="m010 is missing") as failure:
        verify_index.main(["--index", indexed.index.name])
    assert "1 of 39 items differ" in (refusal(failure.value) or "")


def test_verification_names_what_is_older(indexed: Indexed) -> None:
    land(indexed.lake, _THIRD, [listing("m010", _THIRD, status=Status.SOLD)])
    embed_listings.main(_bounds(_THIRD))
    load_index.main(["--index", indexed.index.name])
    client = indexed.search_index.client
    client.delete(index=indexed.index.name, id="m010")
    indexed.search_index.write(indexed.index.name, [listing("m010", minute=10)], [None])
    with pytest.raises(Exception, match="m010 is missing|m010 is older than in the lake"):
        verify_index.main(["--index", indexed.index.name])


def test_a_window_that_landed_since_is_left_to_its_own_run(indexed: Indexed) -> None:
    load_index.main(["--index", indexed.index.name])
    land(indexed.lake, _THIRD, [listing("m010", _THIRD, status=Status.SOLD)])
    embed_listings.main(_bounds(_THIRD))
    verify_index.main(["--index", indexed.index.name])


def test_verification_names_a_window_that_was_never_embedded(indexed: Indexed) -> None:
    _land_third(indexed)
    load_index.main(["--index", indexed.index.name])
    with pytest.raises(LensError, match=r"lacks 1 windows of listings .*, e.g. \[2026-11-03 .* --each_landed"):
        verify_index.main(["--index", indexed.index.name])
    embed_listings.main(["--each_landed"])
    load_index.main(["--index", indexed.index.name, "--catch_up"])
    verify_index.main(["--index", indexed.index.name])


def test_a_window_of_listings_that_landed_since_is_left_to_its_own_run(indexed: Indexed) -> None:
    load_index.main(["--index", indexed.index.name])
    table = to_table([listing("late", _THIRD)], LISTING_SCHEMA)
    indexed.lake.write_table(LISTINGS, _THIRD, table, datetime.now(UTC))
    verify_index.main(["--index", indexed.index.name])


def test_verification_names_what_should_not_be_searchable(indexed: Indexed) -> None:
    load_index.main(["--index", indexed.index.name])
    sold = listing("m001", SECOND, minute=90, status=Status.ON_SALE)
    vector = np.eye(1, indexed.index.card.dims, dtype=np.float32)[0]
    indexed.search_index.write(indexed.index.name, [replace(sold)], [vector])
    with pytest.raises(Exception, match="m001 is on_sale instead of sold"):
        verify_index.main(["--index", indexed.index.name])


def test_verification_names_what_no_search_can_find(indexed: Indexed) -> None:
    load_index.main(["--index", indexed.index.name])
    indexed.search_index.write(indexed.index.name, [listing("m012", minute=12)], [None])
    with pytest.raises(Exception, match="m012 is on_sale, but a search cannot find it"):
        verify_index.main(["--index", indexed.index.name])


def test_an_index_that_nothing_was_loaded_into_is_not_verified(indexed: Indexed) -> None:
    with pytest.raises(LensError, match="nothing was loaded into index"):
        verify_index.main(["--index", indexed.index.name])
