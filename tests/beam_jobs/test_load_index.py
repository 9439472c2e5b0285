"""Loading and verifying an index on a real node: what the lake holds is what is found, whatever the order of writes.

A load reads what changed since the last one, and no more; verification says by name what a reader would miss.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import FIRST, SECOND, Indexed, bounds, items_of, land, listing, put_items, remove_indexes, take_photo

from beam_jobs import compact_lake, embed_listings, fit_projection, load_index, verify_index
from beam_jobs.launcher import refusal
from listing_lens.errors import LensError
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.fits import load_fit, load_projection, save_projection
from listing_lens.lake.records import Listing, Status
from listing_lens.lake.window import Window
from listing_lens.search.bulk import Written
from listing_lens.search.index import Index, SearchIndex
from listing_lens.search.loads import Load, Loads, Part
from listing_lens.settings import load_settings
from models.embedder import EmbedderCard
from models.encoders.small_siglip import save_untrained_siglip
from models.moments import Moments
from models.projection import fit_projection as fit_moments

_THIRD = Window(SECOND.end, SECOND.end + timedelta(days=1))


def _counts(indexed: Indexed) -> dict[str, int]:
    indexed.search_index.finish_load(indexed.index.name)
    return indexed.search_index.counts(indexed.index.name)


def test_all_that_the_lake_holds_is_found(indexed: Indexed) -> None:
    load_index.main(["--index", indexed.index.name])
    verify_index.main(["--index", indexed.index.name])
    # 40 items: one broken, one sold from the start, one sold in the second window.
    assert _counts(indexed) == {"searchable": 37, "removed": 2}
    card = indexed.index.card
    projection = load_projection(indexed.lake, card.projection_id, card.encoder_id)
    on_sale = {
        item: row["embedding"]
        for item, row in items_of(indexed.lake, card.encoder_id).items()
        if row["embedding"] is not None
    }
    assert len(on_sale) == 37
    for item_id in ["m000", "m007", "m020", "m031", "m039"]:
        [vector] = projection.apply(on_sale[item_id][None])
        best = indexed.search_index.search(indexed.index, vector, 1)[0]
        assert best.item_id == item_id
        assert best.score == pytest.approx(1, abs=1e-4)


def _loads(indexed: Indexed, index: Index | None = None) -> Loads:
    return Loads(indexed.search_index, index or indexed.index)


def _last(indexed: Indexed, index: Index | None = None) -> Load:
    """The latest load."""
    return _loads(indexed, index).all()[-1]


def _counted(read: int, written: int, stale: int = 0, refused: int = 0, forgotten: int = 0) -> dict[str, int]:
    return {"read": read, "written": written, "stale": stale, "refused": refused, "forgotten": forgotten}


def test_a_load_repeated_has_nothing_to_do(indexed: Indexed) -> None:
    load_index.main(["--index", indexed.index.name])
    before = _counts(indexed)
    load_index.main(["--index", indexed.index.name])
    assert len(_loads(indexed).all()) == 1
    assert _counts(indexed) == before
    verify_index.main(["--index", indexed.index.name])


def test_a_load_reads_only_what_changed_since_the_last(indexed: Indexed) -> None:
    embeddings = Embeddings(indexed.lake, indexed.index.card.encoder_id)
    load_index.main(["--index", indexed.index.name])
    first = _last(indexed)
    assert (first.since, first.version) == (0, embeddings.require())
    assert first.counts == _counted(39, 39)
    # One is new, one has another price, one is sold.
    _land_third(indexed, listing("m005", _THIRD, price=5), listing("m006", _THIRD, status=Status.SOLD))
    embed_listings.main(bounds(_THIRD))
    load_index.main(["--index", indexed.index.name])
    second = _last(indexed)
    assert (second.since, second.version) == (first.version, embeddings.require())
    assert second.counts == _counted(3, 3)
    assert _counts(indexed) == {"searchable": 37, "removed": 3}
    verify_index.main(["--index", indexed.index.name])


def test_what_compaction_moved_is_not_loaded_again(indexed: Indexed) -> None:
    embeddings = Embeddings(indexed.lake, indexed.index.card.encoder_id)
    load_index.main(["--index", indexed.index.name])
    _land_third(indexed)
    embed_listings.main(bounds(_THIRD))
    before = embeddings.require()
    compact_lake.main([])
    assert embeddings.require() > before
    load_index.main(["--index", indexed.index.name])
    assert _last(indexed).counts == _counted(1, 1)
    compact_lake.main([])
    load_index.main(["--index", indexed.index.name])
    assert _last(indexed).counts["read"] <= 1
    verify_index.main(["--index", indexed.index.name])


def test_a_load_goes_on_until_nothing_is_left(indexed: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is embedded while a load runs is loaded by the same command."""
    run = load_index.run
    embedded_meanwhile: list[int] = []

    def run_while_another_window_is_embedded(*arguments: object) -> object:
        if not embedded_meanwhile:
            _land_third(indexed)
            embed_listings.main(bounds(_THIRD))
            embedded_meanwhile.append(Embeddings(indexed.lake, indexed.index.card.encoder_id).require())
        return run(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(load_index, "run", run_while_another_window_is_embedded)
    load_index.main(["--index", indexed.index.name])
    loads = sorted(_loads(indexed).all(), key=lambda load: load.version)
    assert [load.counts["read"] for load in loads] == [39, 1]
    assert _loads(indexed).reached() == embedded_meanwhile[0]
    assert list(indexed.search_index.versions(indexed.index.name, ["late"])) == ["late"]
    verify_index.main(["--index", indexed.index.name])


class _KilledError(BaseException):
    """What ends a process at once."""


def test_a_load_that_was_killed_goes_on_where_it_stopped(indexed: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_index, "_PART_ROWS", 10)
    record = Loads.record

    def dies_after_two(self: Loads, load: Load, part: Part, *rest: Any) -> None:
        if len(self.parts_done(load)) == 2:
            raise RuntimeError("killed")
        record(self, load, part, *rest)

    with monkeypatch.context() as dying:
        dying.setattr(Loads, "record", dies_after_two)
        with pytest.raises(Exception, match="killed"):
            load_index.main(["--index", indexed.index.name])
    begun = _loads(indexed).unfinished()
    assert begun
    assert len(_loads(indexed).parts_done(begun)) == 2
    # Meanwhile the index got something newer by another way, and the table another version.
    newer = listing("m004", SECOND, minute=500, status=Status.SOLD)
    indexed.search_index.write(indexed.index.name, [newer], [None])
    _land_third(indexed)
    embed_listings.main(bounds(_THIRD))

    written: list[int] = []
    write = SearchIndex.write_documents

    def count(self: SearchIndex, name: str, documents: Any) -> Written:
        outcome = write(self, name, documents)
        written.append(outcome.read)
        return outcome

    monkeypatch.setattr(SearchIndex, "write_documents", count)
    load_index.main(["--index", indexed.index.name])
    # The first load is finished as it was begun, and then followed by one of what was embedded meanwhile.
    first, second = _loads(indexed).all()
    assert (first.name, first.counts["read"], second.counts["read"]) == (begun.name, 39, 1)
    assert sum(written) == 19 + 1
    assert indexed.search_index.versions(indexed.index.name, ["m004"])["m004"] == (newer.version, "sold")
    verify_index.main(["--index", indexed.index.name])


def test_a_load_whose_version_is_no_longer_kept_begins_afresh(
    indexed: Indexed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_index, "_PART_ROWS", 10)
    with monkeypatch.context() as dying:
        dying.setattr(Loads, "finish", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(Exception, match="killed"):
            load_index.main(["--index", indexed.index.name])
    _land_third(indexed)
    embed_listings.main(bounds(_THIRD))
    Embeddings(indexed.lake, indexed.index.card.encoder_id).items.compact(timedelta(0))
    load_index.main(["--index", indexed.index.name])
    finished = [load for load in _loads(indexed).all() if load.finished_at]
    assert [load.counts["read"] for load in finished] == [40]


def test_parts_of_a_fragment_leave_nothing_out_where_rows_were_replaced(
    indexed: Indexed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_index, "_PART_ROWS", 7)
    land(indexed.lake, _THIRD, [listing(f"m{n:03d}", _THIRD, minute=n, price=5) for n in (0, 5, 6, 7, 19, 20, 38)])
    embed_listings.main(bounds(_THIRD))
    load_index.main(["--index", indexed.index.name])
    assert _last(indexed).counts == _counted(39, 39)
    verify_index.main(["--index", indexed.index.name])


def test_what_was_sold_long_ago_is_not_in_a_new_index(indexed: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENS_INDEX_REMOVED_DAYS", "0")
    load_index.main(["--index", indexed.index.name])
    assert _last(indexed).counts == _counted(39, 37, forgotten=2)
    assert _counts(indexed) == {"searchable": 37, "removed": 0}
    verify_index.main(["--index", indexed.index.name])


class TestWhatTheIndexRefuses:
    """A row that Elasticsearch will not take; the lake's door would have stopped it, but tables outlive doors."""

    def _put_bad(self, indexed: Indexed, *item_ids: str) -> None:
        encoder_id = indexed.index.card.encoder_id
        vector = next(row["embedding"] for row in items_of(indexed.lake, encoder_id).values() if row["photo"])
        rows = [listing(item_id, _THIRD, category=("a" * 40_000,)) for item_id in item_ids]
        put_items(indexed.lake, encoder_id, rows, [vector.astype(np.float16)] * len(rows), _THIRD)

    def test_is_set_aside_with_its_reason_and_keeps_nothing_else_out(self, indexed: Indexed) -> None:
        self._put_bad(indexed, "bad")
        load_index.main(["--index", indexed.index.name])
        assert _last(indexed).counts == _counted(40, 39, refused=1)
        [refused] = _loads(indexed).refusals()
        assert refused.item_id == "bad"
        assert "category" in refused.reason
        assert _loads(indexed).refusals("bad") == [refused]
        assert _loads(indexed).refusals("m000") == []
        verify_index.main(["--index", indexed.index.name])

    def test_ends_the_load_if_it_is_too_much(self, indexed: Indexed) -> None:
        bad = [f"bad{n}" for n in range(11)]
        self._put_bad(indexed, *bad)
        with pytest.raises(
            Exception, match="refused 11 of 50 documents, more than LENS_MAX_DEAD_LETTER_RATIO allows"
        ) as err:
            load_index.main(["--index", indexed.index.name])
        assert "item 'bad" in (refusal(err.value) or "")
        assert _loads(indexed).reached() == 0


def test_an_index_has_the_version_of_the_table(indexed: Indexed) -> None:
    load_index.main(["--index", indexed.index.name])
    rows = items_of(indexed.lake, indexed.index.card.encoder_id)
    held = indexed.search_index.versions(indexed.index.name, sorted(rows))
    assert held == {item: (row["version"], row["status"]) for item, row in rows.items()}


@pytest.fixture
def other_encoder(tmp_path: Path) -> str:
    return str(save_untrained_siglip(tmp_path / "other-siglip", seed=1))


@pytest.fixture
def other_index(indexed: Indexed, other_encoder: str) -> Index:
    """An empty index of another encoder, which has embedded the marketplace too."""
    embed_listings.main(["--each_landed", "--encoder", other_encoder])
    fit_projection.main(["--name", "other", "--encoder", other_encoder])
    return indexed.search_index.create(load_fit(indexed.lake, "other").card, "other")


def _land_third(indexed: Indexed, *others: Listing) -> None:
    take_photo(indexed.lake, "late.jpg", 99)
    land(indexed.lake, _THIRD, [listing("late", _THIRD), *others])


def _held(indexed: Indexed, index: Index, *item_ids: str) -> list[str]:
    return list(indexed.search_index.versions(index.name, item_ids))


def _nearest(indexed: Indexed, index: Index, item_id: str) -> str:
    """What a search finds that is given the item's own vector, in the index's space."""
    indexed.search_index.finish_load(index.name)
    embedding = items_of(indexed.lake, index.card.encoder_id)[item_id]["embedding"]
    projection = load_projection(indexed.lake, index.card.projection_id, index.card.encoder_id)
    [hit] = indexed.search_index.search(index, projection.apply(embedding[None])[0], 1)
    assert hit.score == pytest.approx(1, abs=1e-4)
    return hit.item_id


class TestLive:
    def test_is_the_one_behind_the_alias(self, indexed: Indexed) -> None:
        other = indexed.search_index.create(indexed.index.card, "two")
        indexed.search_index.swap(other.name)
        load_index.main(["--live", *bounds(SECOND)])
        assert _held(indexed, other, "m000") == ["m000"]
        assert _held(indexed, indexed.index, "m000") == []

    def test_is_fed_from_its_own_encoder(self, indexed: Indexed, other_index: Index, other_encoder: str) -> None:
        assert other_index.card.encoder_id != indexed.index.card.encoder_id
        for index in (other_index, indexed.index):
            indexed.search_index.swap(index.name)
            load_index.main(["--live"])
        _land_third(indexed)
        for encoder in (indexed.index.card.encoder_source, other_encoder):
            embed_listings.main([*bounds(_THIRD), "--encoder", encoder])
        load_index.main(["--live", *bounds(_THIRD)])
        load_index.main(["--index", other_index.name])
        for index in (indexed.index, other_index):
            assert _held(indexed, index, "late", "m000") == ["late", "m000"]
            assert _nearest(indexed, index, "late") == "late"

    def test_must_have_the_window(self, indexed: Indexed, other_index: Index, other_encoder: str) -> None:
        indexed.search_index.swap(other_index.name)
        _land_third(indexed)
        embed_listings.main(bounds(_THIRD))
        with pytest.raises(LensError, match=f"index {other_index.name} would lack it: .*--encoder {other_encoder}"):
            load_index.main(["--live", *bounds(_THIRD)])

    def test_is_left_alone_if_another_encoder_is_asked_for(
        self, indexed: Indexed, other_index: Index, other_encoder: str
    ) -> None:
        indexed.search_index.swap(indexed.index.name)
        load_index.main(["--live", "--encoder", other_encoder])
        assert _held(indexed, indexed.index, "m000") == []

    def test_may_not_be_there_yet(self, indexed: Indexed, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level("INFO"):
            load_index.main(["--live", *bounds(FIRST)])
        assert "there is no index to load into" in caplog.text

    def test_is_that_of_its_own_alias(self, indexed: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LENS_ALIAS", f"{indexed.search_index.alias}-staging")
        staging = SearchIndex.connect(load_settings())
        other = staging.create(indexed.index.card, "one")
        try:
            monkeypatch.setenv("LENS_ALIAS", indexed.search_index.alias)
            assert [index.name for index in indexed.search_index.all()] == [indexed.index.name]
            indexed.search_index.swap(indexed.index.name)
            load_index.main(["--live"])
            assert indexed.search_index.versions(indexed.index.name, ["m000"])
            assert not staging.versions(other.name, ["m000"])
        finally:
            remove_indexes(staging)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"encoder_id": "unused-12345678"}, "holds no embeddings of unused-12345678 yet"),
        ({"projection_id": "00000000"}, "projection 00000000 is not in the lake"),
    ],
    ids=["an encoder that has embedded nothing", "a projection that is gone"],
)
def test_an_index_that_cannot_be_loaded_says_why(indexed: Indexed, changes: dict[str, str], reason: str) -> None:
    card = EmbedderCard.model_validate(indexed.index.card.model_dump() | changes)
    if "encoder_id" in changes:
        # Its projection is there: it was fitted in another lake, say.
        rows = np.random.default_rng(0).standard_normal((60, card.encoder_dims)).astype(np.float32)
        projection = fit_moments(Moments.of(rows), card.dims, encoder_id=card.encoder_id)
        save_projection(indexed.lake, projection)
        card = card.model_copy(update={"projection_id": projection.projection_id})
    bad = indexed.search_index.create(card, "bad")
    with pytest.raises(LensError, match=reason):
        load_index.main(["--index", bad.name])


def test_an_hour_of_listings_that_landed_by_the_day_is_embedded_once_the_hour_is(indexed: Indexed) -> None:
    _land_third(indexed)
    hour = Window(_THIRD.start, _THIRD.start + timedelta(hours=1))
    embed_listings.main(bounds(hour))
    load_index.main(["--index", indexed.index.name, *bounds(hour)])
    assert _held(indexed, indexed.index, "late") == ["late"]
    next_hour = Window(hour.end, hour.end + timedelta(hours=1))
    with pytest.raises(LensError, match="is not embedded by .* would lack it"):
        load_index.main(["--index", indexed.index.name, *bounds(next_hour)])


def test_a_window_that_is_not_embedded_is_no_empty_load(indexed: Indexed) -> None:
    with pytest.raises(LensError, match="window .2026-11-03 .* is not embedded by .* would lack it"):
        load_index.main(["--index", indexed.index.name, *bounds(_THIRD)])


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
