"""Verifying an index on a real node: whatever a reader would miss, or find wrongly, fails the check that is named for it.

Every check is made in every run, and the report of all of them is kept. Documents are spoilt by hand, past the job that writes
them: at the version that they have, so that nothing else tells them from the right ones.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from tiny import SECOND, Indexed, bounds, image_root, items_of, land, listing, take_photo

from beam_jobs import embed_listings, load_index, verify_index
from beam_jobs.launcher import refusal
from beam_jobs.verification import repair as repairing
from beam_jobs.verification.known import LANDED_PATIENCE
from listing_lens.errors import LensError
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.records import LISTING_SCHEMA, Listing, Status, to_table
from listing_lens.lake.window import Window
from listing_lens.lake.windows import LISTINGS
from listing_lens.search.builds import Builds
from listing_lens.search.loads import Loads
from listing_lens.search.verification import CHECKS, Check, Verification

_THIRD = Window(SECOND.end, SECOND.end + timedelta(days=1))


@pytest.fixture
def loaded(indexed: Indexed) -> Indexed:
    """The marketplace's index, with all that the lake holds: 37 items on sale and 2 removed."""
    load_index.main(["--index", indexed.index.name])
    indexed.search_index.finish_load(indexed.index.name)
    return indexed


def _report(indexed: Indexed) -> Verification:
    found = Builds(indexed.search_index).get(indexed.index.name).verification
    assert found is not None
    return found


def _outcomes(report: Verification) -> dict[str, bool | None]:
    return {check.name: check.passed for check in report.checks}


def _check(indexed: Indexed, name: str) -> Check:
    [found] = [check for check in _report(indexed).checks if check.name == name]
    return found


def _verify(indexed: Indexed, *arguments: str) -> Verification:
    verify_index.main(["--index", indexed.index.name, *arguments])
    return _report(indexed)


def _fails(indexed: Indexed, *names: str) -> str:
    """Verify an index of which these checks fail, and canaries if the item is one. Returns the sentence."""
    with pytest.raises(Exception, match="failed its verification") as failure:
        _verify(indexed)
    report = _report(indexed)
    assert {check.name for check in report.failed} - {"canaries"} == set(names) - {"canaries"}
    assert "canaries" not in names or _outcomes(report)["canaries"] is False
    # One failure stops none of the other checks.
    assert list(_outcomes(report)) == list(CHECKS)
    assert refusal(failure.value) == report.sentence
    return report.sentence


def _verified_at(indexed: Indexed, now: datetime) -> Check:
    """What the windows of listings are found to be at some time."""
    config = verify_index.configure(indexed.index.name, now=now)
    [windows] = [check for check in config.known if check.name == "windows"]
    return windows


def _vector(indexed: Indexed, item_id: str) -> list[float]:
    vector = indexed.search_index.vectors(indexed.index.name, [item_id])[item_id][1]
    assert vector is not None
    return list(map(float, vector))


def _put(indexed: Indexed, item_id: str, version: int, source: dict[str, Any]) -> None:
    indexed.search_index.client.index(
        index=indexed.index.name,
        id=item_id,
        document=source,
        version=version,
        version_type="external_gte",
        refresh=True,
    )


def _spoil(indexed: Indexed, item_id: str, **changes: object) -> None:
    """Change fields of a document, but not its version; without a `vector` no search finds it."""
    held = indexed.search_index.client.get(index=indexed.index.name, id=item_id)
    source = dict(held["_source"]) | changes
    if "vector" not in changes and held["_source"]["status"] == "on_sale":
        source["vector"] = _vector(indexed, item_id)
    _put(indexed, item_id, held["_version"], {name: value for name, value in source.items() if value is not None})


def _delete(indexed: Indexed, item_id: str) -> None:
    """Delete a document, which leaves its version behind, so that the same one can be written again."""
    version = indexed.search_index.versions(indexed.index.name, [item_id])[item_id][0]
    indexed.search_index.client.delete(
        index=indexed.index.name, id=item_id, version=version, version_type="external_gte", refresh=True
    )


def _land_third(indexed: Indexed, *others: Listing) -> None:
    take_photo(indexed.lake, "late.jpg", 99)
    land(indexed.lake, _THIRD, [listing("late", _THIRD), *others])


def _land_again(indexed: Indexed, window: Window, landed_at: datetime) -> None:
    """Replace a window by the same listings, as a feed does that is run twice."""
    rows = [
        row for row in items_of(indexed.lake, indexed.index.card.encoder_id).values() if row["updated_at"] in window
    ]
    table = to_table([{name: row[name] for name in LISTING_SCHEMA.names} for row in rows], LISTING_SCHEMA)
    indexed.lake.write_table(LISTINGS, window, table, landed_at, image_root=image_root(indexed.lake))


def test_an_index_that_holds_what_the_lake_holds_passes_every_check(loaded: Indexed) -> None:
    report = _verify(loaded)
    # No other index is live, and an evaluation is another job.
    expected = dict.fromkeys(CHECKS, True) | {"size": None, "ndcg": None}
    assert _outcomes(report) == expected
    measured = {check.name: check.measured for check in report.checks if check.passed is not None}
    assert measured == {
        "mapping": None,
        "windows": 0,
        "reconciled": 0,
        "vectors": pytest.approx(1, abs=1e-5),
        "self_retrieval": 1,
        "recall": 1,
        "canaries": 1,
    }
    assert _check(loaded, "vectors").says == "0 of 37 vectors differ from those of the lake"
    assert report.space == loaded.index.card.space
    assert report.table_version == Embeddings(loaded.lake, loaded.index.card.encoder_id).require()
    assert report.sentence == f"index {loaded.index.name} passed its verification"


def test_the_live_index_is_verified_by_the_alias(loaded: Indexed) -> None:
    loaded.search_index.swap(loaded.index.name)
    verify_index.main(["--live"])
    assert _report(loaded).passed


class TestReconciled:
    def test_names_what_is_missing(self, loaded: Indexed) -> None:
        _delete(loaded, "m010")
        sentence = _fails(loaded, "reconciled")
        assert "1 of 39 items differ from the lake" in sentence
        assert "m010 is missing" in sentence

    def test_names_what_is_older(self, loaded: Indexed) -> None:
        config = verify_index.configure(loaded.index.name)
        land(loaded.lake, _THIRD, [listing("m010", _THIRD, status=Status.SOLD)])
        embed_listings.main(bounds(_THIRD))
        with pytest.raises(Exception, match="m010 is older than in the lake"), beam.Pipeline() as pipeline:
            verify_index.run(pipeline, replace(config, version=config.embeddings.require()))

    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"price": 5}, "m012 has the price 5 instead of 1200"),
            ({"title": "another"}, "m012 has the title 'another' instead of 'title of m012'"),
            ({"category": ["A"]}, "m012 has the category ['A'] instead of ['A', 'B']"),
            ({"status": "reserved"}, "m012 is reserved instead of on_sale"),
            ({"vector": None}, "m012 is on_sale, but a search cannot find it"),
        ],
        ids=["price", "title", "category", "status", "no vector"],
    )
    def test_names_what_is_wrong_at_the_right_version(
        self, loaded: Indexed, changes: dict[str, object], problem: str
    ) -> None:
        _spoil(loaded, "m012", **changes)
        with pytest.raises(Exception, match="failed its verification"):
            _verify(loaded)
        assert _check(loaded, "reconciled").examples == (problem,)

    def test_names_what_should_not_be_searchable(self, loaded: Indexed) -> None:
        _spoil(loaded, "m001", vector=np.eye(1, loaded.index.card.dims)[0].tolist())
        assert "m001 is sold, but a search finds it" in _fails(loaded, "reconciled")

    def test_names_what_the_lake_does_not_hold(self, loaded: Indexed) -> None:
        stranger = listing("stranger", SECOND)
        loaded.search_index.write(loaded.index.name, [stranger], [np.eye(1, 8, dtype=np.float32)[0]])
        sentence = _fails(loaded, "reconciled")
        assert "0 of 39 items differ from the lake, and 1 searchable documents are not in it" in sentence
        assert "stranger is not in the lake" in sentence

    def test_what_is_newer_than_what_is_embedded_is_ahead_of_the_lake(self, loaded: Indexed) -> None:
        early = listing("early", _THIRD)
        loaded.search_index.write(loaded.index.name, [early], [np.eye(1, 8, dtype=np.float32)[0]])
        _verify(loaded)
        assert "1 documents are newer than what is embedded" in _check(loaded, "reconciled").says

    def test_what_was_loaded_meanwhile_is_in_the_lake(self, loaded: Indexed) -> None:
        config = verify_index.configure(loaded.index.name)
        _land_third(loaded)
        embed_listings.main(bounds(_THIRD))
        load_index.main(["--index", loaded.index.name])
        with beam.Pipeline() as pipeline:
            verify_index.run(pipeline, config)
        says = _check(loaded, "reconciled").says
        assert says == "0 of 39 items differ from the lake, and 0 searchable documents are not in it"

    def test_what_was_sold_may_be_missing(self, loaded: Indexed) -> None:
        _delete(loaded, "m001")
        assert _verify(loaded).passed

    def test_what_elasticsearch_refused_is_explained(self, loaded: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
        # It may be among the canaries, and no photo finds it.
        monkeypatch.setenv("LENS_VERIFY_CANARIES", "0")
        version = loaded.search_index.versions(loaded.index.name, ["m010"])["m010"][0]
        _delete(loaded, "m010")
        config = replace(verify_index.configure(loaded.index.name), refused=frozenset({("m010", version)}))
        with beam.Pipeline() as pipeline:
            verify_index.run(pipeline, config)
        assert "1 items were refused by Elasticsearch" in _check(loaded, "reconciled").says
        # Another version of it was not.
        with pytest.raises(Exception, match="m010 is missing"), beam.Pipeline() as pipeline:
            verify_index.run(pipeline, replace(config, refused=frozenset({("m010", version - 1)})))

    def test_an_item_that_a_feed_has_made_newer_may_be_anything(self, loaded: Indexed) -> None:
        newer = listing("m004", SECOND, minute=500, status=Status.SOLD)
        loaded.search_index.write(loaded.index.name, [newer], [None])
        assert _verify(loaded).passed


class TestVectors:
    def test_one_that_is_wrong_at_the_right_version_is_named(self, loaded: Indexed) -> None:
        _spoil(loaded, "m012", vector=_vector(loaded, "m013"))
        sentence = _fails(loaded, "vectors")
        assert "1 of 37 vectors differ from those of the lake, e.g. m012 has a cosine of" in sentence
        assert "--repair" in sentence

    def test_of_the_others_are_found_by_searches_in_vain(self, loaded: Indexed) -> None:
        """Vectors that changed places are right as a set, but not one of them is its item's."""
        found = {
            item: _vector(loaded, item)
            for item, row in items_of(loaded.lake, loaded.index.card.encoder_id).items()
            if row["embedding"] is not None
        }
        moved = list(found.values())
        for item_id, vector in zip(found, moved[1:] + moved[:1], strict=True):
            _spoil(loaded, item_id, vector=vector)
        _fails(loaded, "vectors", "self_retrieval", "recall", "canaries")
        # Of 37 items, 10 that are drawn by chance hold the right one now and then.
        assert (_check(loaded, "self_retrieval").measured or 0) < 0.7
        assert (_check(loaded, "recall").measured or 0) < 0.7


class TestRecall:
    def test_is_measured_against_all_of_the_lake(self, loaded: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
        # Half of the items are gone: half of all nearest neighbours are.
        for number in range(20, 40):
            _delete(loaded, f"m{number:03d}")
        with pytest.raises(Exception, match="failed its verification"):
            _verify(loaded)
        recall = _check(loaded, "recall")
        assert (recall.passed, recall.threshold) == (False, 0.9)
        assert 0.3 < (recall.measured or 0) < 0.7
        assert recall.examples

    def test_takes_what_there_is_of_a_small_index(self, loaded: Indexed) -> None:
        _sell(loaded, [f"m{number:03d}" for number in range(5, 40)])
        _verify(loaded)
        # m000 and m004 are left: m001 and m003 are sold, m002 is broken.
        assert _check(loaded, "recall").says == "of the 1 nearest neighbours of 2 items, 100.0% are found"

    def test_is_left_out_of_an_index_without_neighbours(self, loaded: Indexed) -> None:
        _sell(loaded, [f"m{number:03d}" for number in range(1, 40)])
        assert _outcomes(_verify(loaded))["recall"] is None


def _sell(indexed: Indexed, item_ids: list[str]) -> None:
    land(indexed.lake, _THIRD, [listing(item_id, _THIRD, status=Status.SOLD) for item_id in item_ids])
    embed_listings.main(bounds(_THIRD))
    load_index.main(["--index", indexed.index.name])


class TestCanaries:
    def test_fail_when_the_index_is_of_another_space_than_it_says(self, loaded: Indexed) -> None:
        rng = np.random.default_rng(0)
        turn = np.linalg.qr(rng.standard_normal((8, 8)))[0]
        for item, row in items_of(loaded.lake, loaded.index.card.encoder_id).items():
            if row["embedding"] is not None:
                _spoil(loaded, item, vector=(np.array(_vector(loaded, item)) @ turn).tolist())
        with pytest.raises(Exception, match="canaries"):
            _verify(loaded)
        assert _outcomes(_report(loaded))["vectors"] is False
        assert _check(loaded, "canaries").passed is False

    def test_whose_photos_cannot_be_read_are_said_and_do_not_count(
        self, loaded: Indexed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LENS_VERIFY_CANARIES", "100")
        # The marketplace's photos are elsewhere: only this one is in the lake, which alone may be read from.
        _land_third(loaded)
        embed_listings.main(bounds(_THIRD))
        load_index.main(["--index", loaded.index.name])
        canaries = _verified_reading(loaded, image_root(loaded.lake))
        assert canaries.passed
        assert canaries.says.startswith("1 of 1 listings are found by their photos")
        assert "; 37 photos cannot be read now, e.g. m0" in canaries.says

    def test_are_left_out_when_no_photo_can_be_read(self, loaded: Indexed) -> None:
        canaries = _verified_reading(loaded)
        assert canaries.passed is None
        assert canaries.says.startswith("left out: there are no listings to find by their photos; 10 photos cannot be")

    def test_are_left_out_when_there_shall_be_none(self, loaded: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LENS_VERIFY_CANARIES", "0")
        _verify(loaded)
        assert _check(loaded, "canaries").says == "left out: LENS_VERIFY_CANARIES is 0"

    def test_fail_without_the_encoder(self, loaded: Indexed) -> None:
        config = verify_index.configure(loaded.index.name)
        card = config.index.card.model_copy(update={"encoder_source": "/nowhere/siglip"})
        with pytest.raises(Exception, match="no photo can be searched with"), beam.Pipeline() as pipeline:
            verify_index.run(pipeline, replace(config, index=replace(config.index, card=card)))
        assert [check.name for check in _report(loaded).failed] == ["canaries"]

    def test_find_a_copy_for_an_item_that_many_copies_crowd_out(self, loaded: Indexed) -> None:
        for number in range(12):
            loaded.lake.write_bytes(f"{image_root(loaded.lake)}/copy{number}.jpg", _photo_of(loaded, "m010"))
        land(loaded.lake, _THIRD, [listing(f"copy{number}", _THIRD) for number in range(12)])
        embed_listings.main(bounds(_THIRD))
        load_index.main(["--index", loaded.index.name])
        report = _verify(loaded)
        assert {check.name: check.measured for check in report.checks}["self_retrieval"] == 1
        assert {check.name: check.measured for check in report.checks}["canaries"] == 1


def _verified_reading(indexed: Indexed, *allowed: str) -> Check:
    """What the canaries are found to be where photos may be read from these folders only."""
    config = verify_index.configure(indexed.index.name)
    with beam.Pipeline() as pipeline:
        verify_index.run(pipeline, replace(config, images=replace(config.images, allowed=allowed)))
    return _check(indexed, "canaries")


def _photo_of(indexed: Indexed, item_id: str) -> bytes:
    return indexed.lake.read_bytes(f"{image_root(indexed.lake)}/{item_id}.jpg")


class TestWindows:
    def test_that_were_never_embedded_are_named(self, indexed: Indexed) -> None:
        _land_third(indexed)
        load_index.main(["--index", indexed.index.name])
        sentence = _fails(indexed, "windows")
        assert "1 of 3 windows of listings are not embedded by" in sentence
        assert "embed them with --each_landed --encoder" in sentence
        assert "e.g. [2026-11-03 " in sentence
        embed_listings.main(["--each_landed"])
        load_index.main(["--index", indexed.index.name])
        assert _verify(indexed).passed

    def test_that_landed_since_are_left_to_their_own_runs_but_not_for_ever(self, loaded: Indexed) -> None:
        landed_at = min(load.started_at for load in Loads(loaded.search_index, loaded.index).all()) + timedelta(
            minutes=1
        )
        table = to_table([listing("late", _THIRD)], LISTING_SCHEMA)
        loaded.lake.write_table(LISTINGS, _THIRD, table, landed_at)
        soon = _verified_at(loaded, landed_at + LANDED_PATIENCE)
        assert (soon.passed, soon.measured) == (True, 0)
        assert "1 landed lately and are left to their own runs" in soon.says
        late = _verified_at(loaded, landed_at + LANDED_PATIENCE + timedelta(seconds=1))
        assert (late.passed, late.measured, late.threshold) == (False, 1, 0)
        assert late.examples == (str(_THIRD),)

    def test_that_were_embedded_before_they_were_replaced_wait_likewise(self, loaded: Indexed) -> None:
        # Before the load, as a replay of an hour may be: an earlier content is in the index.
        landed_at = min(load.started_at for load in Loads(loaded.search_index, loaded.index).all()) - timedelta(
            minutes=1
        )
        _land_again(loaded, SECOND, landed_at)
        assert _verified_at(loaded, landed_at + LANDED_PATIENCE).passed
        assert not _verified_at(loaded, landed_at + LANDED_PATIENCE + timedelta(seconds=1)).passed

    def test_that_landed_before_the_load_do_not_wait(self, loaded: Indexed) -> None:
        landed_at = min(load.started_at for load in Loads(loaded.search_index, loaded.index).all()) - timedelta(
            minutes=1
        )
        loaded.lake.write_table(LISTINGS, _THIRD, to_table([listing("late", _THIRD)], LISTING_SCHEMA), landed_at)
        assert not _verified_at(loaded, landed_at + timedelta(minutes=2)).passed


class TestMapping:
    def test_of_another_index_type_is_named(self, loaded: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LENS_INDEX_OPTIONS", '{"type": "int8_hnsw"}')
        assert "index_options.type is hnsw instead of int8_hnsw" in _fails(loaded, "mapping")


class TestSize:
    def test_is_compared_with_the_live_index_s(self, loaded: Indexed) -> None:
        live = loaded.search_index.create(loaded.index.card, "live")
        many = [listing(f"old{number}") for number in range(50)]
        loaded.search_index.write(live.name, many, [np.eye(1, 8, dtype=np.float32)[0]] * 50)
        loaded.search_index.finish_load(live.name)
        loaded.search_index.swap(live.name)
        assert "37 documents are searchable, and 50 in the live index" in _fails(loaded, "size")
        assert _check(loaded, "size").measured == pytest.approx(37 / 50)


class TestForce:
    def test_accepts_a_failed_check_by_its_name_and_the_report_says_so(self, loaded: Indexed) -> None:
        _spoil(loaded, "m012", price=5)
        report = _verify(loaded, "--force", "reconciled", "--force", "size")
        assert report.forced == ("reconciled", "size")
        assert report.passed
        assert _outcomes(report)["reconciled"] is False
        assert report.sentence.endswith("passed its verification, with reconciled accepted by --force")

    def test_of_one_check_accepts_no_other(self, loaded: Indexed) -> None:
        _spoil(loaded, "m012", price=5)
        with pytest.raises(Exception, match="reconciled .*m012 has the price 5"):
            _verify(loaded, "--force", "size")

    def test_of_an_unknown_name_is_refused_with_the_list(self, loaded: Indexed) -> None:
        with pytest.raises(LensError, match="there is no check 'speed' to force: the checks are mapping, windows, "):
            _verify(loaded, "--force", "speed")


class TestRepair:
    def test_mends_what_differs_and_verifies_again(self, loaded: Indexed) -> None:
        _delete(loaded, "m010")
        _spoil(loaded, "m012", price=5)
        _spoil(loaded, "m013", vector=_vector(loaded, "m014"))
        stranger = listing("stranger", SECOND)
        loaded.search_index.write(loaded.index.name, [stranger], [np.eye(1, 8, dtype=np.float32)[0]])
        with pytest.raises(Exception, match="reconciled .*; vectors "):
            _verify(loaded)
        report = _verify(loaded, "--repair")
        assert report.repaired == "3 items were written again from the lake, and 1 surplus documents deleted"
        assert report.passed
        again = _verify(loaded)
        assert (again.passed, again.repaired) == (True, None)
        assert loaded.search_index.versions(loaded.index.name, ["stranger"]) == {}

    def test_compares_every_vector_not_only_a_sample_s(self, loaded: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LENS_VERIFY_SAMPLE", "10")
        items = [item for item, row in items_of(loaded.lake, loaded.index.card.encoder_id).items() if row["photo"]]
        for item in items[::6]:
            _spoil(loaded, item, vector=_vector(loaded, items[1]))
        report = _verify(loaded, "--repair")
        assert (report.repaired or "").startswith(f"{len(items[::6])} items were written again")
        assert {check.name: check.says for check in report.checks}["vectors"].startswith("0 of 37 vectors")

    def test_of_a_sound_index_changes_nothing(self, loaded: Indexed) -> None:
        report = _verify(loaded, "--repair")
        assert report.repaired == "0 items were written again from the lake, and 0 surplus documents deleted"

    def test_of_too_much_is_refused(self, loaded: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(repairing, "MOST_REPAIRED", 1)
        for item_id in ("m010", "m011"):
            _spoil(loaded, item_id, price=5)
        with pytest.raises(LensError, match="differs in more than 1 items from the lake: rebuild it"):
            _verify(loaded, "--repair")
        # What was found is reported all the same.
        assert [check.name for check in _report(loaded).failed] == ["reconciled"]


def test_an_index_that_nothing_was_loaded_into_is_not_verified(indexed: Indexed) -> None:
    with pytest.raises(LensError, match="nothing was loaded into index"):
        _verify(indexed)
