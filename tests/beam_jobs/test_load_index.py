"""Loading and verifying an index on a real node: what the lake holds is what is found, whatever the order of writes."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from tiny import FIRST, SECOND, Indexed, land, listing, take_photo

from beam_jobs import embed_listings, load_index, verify_index
from beam_jobs.launcher import refusal
from listing_lens.errors import LensError
from listing_lens.lake import embeddings
from listing_lens.projections import load_projection
from listing_lens.records import Status, embedding_matrix
from listing_lens.window import Window
from models.projection import Projection

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
    projection = load_projection(indexed.lake, indexed.index.card.projection_id)
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


def test_without_an_index_every_one_of_the_encoder_is_fed(indexed: Indexed) -> None:
    other = indexed.search_index.create(indexed.index.card, "two")
    take_photo(indexed.lake, "late.jpg", 99)
    land(indexed.lake, _THIRD, [listing("late", _THIRD)])
    embed_listings.main(_bounds(_THIRD))
    load_index.main(_bounds(_THIRD))
    for index in (indexed.index, other):
        assert list(indexed.search_index.versions(index.name, ["late", "m000"])) == ["late"]


def test_an_embedding_at_the_mean_points_nowhere_but_is_kept(indexed: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Projection, "apply", lambda self, rows: np.zeros((len(rows), self.dims), np.float32))
    load_index.main(["--index", indexed.index.name])
    assert _counts(indexed) == {"searchable": 0, "removed": 39}
    verify_index.main(["--index", indexed.index.name])


def test_a_window_that_is_not_embedded_is_no_empty_load(indexed: Indexed) -> None:
    with pytest.raises(LensError, match="have not landed"):
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
    load_index.main(["--index", indexed.index.name])
    land(indexed.lake, _THIRD, [listing("m010", _THIRD, status=Status.SOLD)])
    embed_listings.main(_bounds(_THIRD))
    with pytest.raises(Exception, match="m010 is older than in the lake"):
        verify_index.main(["--index", indexed.index.name])


def test_verification_names_what_should_not_be_searchable(indexed: Indexed) -> None:
    load_index.main(["--index", indexed.index.name])
    sold = listing("m001", SECOND, minute=90, status=Status.ON_SALE)
    vector = np.eye(1, indexed.index.card.dims, dtype=np.float32)[0]
    indexed.search_index.write(indexed.index.name, [replace(sold)], [vector])
    with pytest.raises(Exception, match="m001 is on_sale instead of sold"):
        verify_index.main(["--index", indexed.index.name])
