"""What is collected of a listing: from tables, letters, ledgers and windows of a real lake, and from indexes on a real node."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from tiny import FIRST, NOW, SECOND, land, land_unchecked, listing, put_items, remove_indexes

from listing_lens.lake.dead_letters import DeadLetters, Letter
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.ledger import Completed, Ledger, input_of
from listing_lens.lake.records import Status
from listing_lens.lake.window import Window
from listing_lens.lake.windows import LISTINGS, Lake
from listing_lens.search.builds import Builds
from listing_lens.search.bulk import Written
from listing_lens.search.documents import Refusal
from listing_lens.search.index import SearchIndex
from listing_lens.search.lineage import InIndex, InLake, Progress, compare, explain
from listing_lens.search.loads import Load, Loads, Part
from listing_lens.search.tracing import trace
from listing_lens.settings import Settings, load_settings
from models.embedder import EmbedderCard

ENCODER = "small-12345678"
CARD = EmbedderCard(encoder_source="x", encoder_id=ENCODER, encoder_dims=4, projection_id="p1", dims=4)
AXIS = np.eye(1, 4, dtype=np.float32)[0]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lens-lake"))


def embedded(lake: Lake, *windows: Window) -> None:
    """Say in the ledger that these windows are embedded as they are."""
    ledger = Ledger(Embeddings(lake, ENCODER))
    ledger.begin(windows, "one", NOW)
    done = {
        window: Completed((input_of(window, lake.manifest(LISTINGS, window).identity),), {"read": 1})
        for window in windows
    }
    ledger.complete(done, "one", {}, NOW)


def of_lake(item_id: str) -> InLake:
    [found] = trace(item_id, load_settings()).lakes
    return found


class TestTheLake:
    """Without a cluster."""

    def test_tells_the_row_its_window_and_what_embedded_it(self, lake: Lake) -> None:
        one = listing("it's", image_uri=f"{lake.root}/images/it's.jpg")
        land(lake, FIRST, [one, listing("other")])
        put_items(lake, ENCODER, [one, listing("other")], [AXIS, AXIS])
        embedded(lake, FIRST)
        facts = trace("it's", load_settings())
        [found] = facts.lakes
        assert found.row is not None
        assert (found.row.version, found.row.status, found.row.window) == (one.version, "on_sale", FIRST)
        assert (found.row.photo, found.row.backend) == (b"it's".hex(), "float32")
        assert found.row.changed_in == found.table_version
        [reading] = found.readings
        assert (reading.window, reading.progress, reading.attempt) == (FIRST, Progress.EMBEDDED, "one")
        assert reading.input == input_of(FIRST, lake.manifest(LISTINGS, FIRST).identity)
        [source] = facts.sources
        # The same as the row's, though the landed address is relative.
        assert (source.window, source.version, source.status) == (FIRST, one.version, "on_sale")

    def test_computes_the_version_of_a_landed_row_from_its_absolute_address(self, lake: Lake) -> None:
        land(lake, FIRST, [listing("a")])
        [source] = trace("a", load_settings()).sources
        assert source.version == listing("a", image_uri=f"{lake.root}/images/a.jpg").version

    def test_tells_letters_of_the_item_alone(self, lake: Lake) -> None:
        letters = [
            Letter.of_listing(listing(name), FIRST, "fetch", "gone", transient=True, attempts=1, now=NOW)
            for name in ("a", "b")
        ]
        DeadLetters(Embeddings(lake, ENCODER)).add(letters)
        found = of_lake("a")
        assert found.letters == (letters[0],)
        assert [reading.progress for reading in found.readings] == [Progress.GONE]

    def test_tells_what_waits_in_a_window_that_nobody_names(self, lake: Lake) -> None:
        put_items(lake, ENCODER, [listing("a")], [AXIS])
        land(lake, FIRST, [listing("a")])
        embedded(lake, FIRST)
        land(lake, SECOND, [listing("new", SECOND)])
        facts = trace("new", load_settings())
        assert [source.window for source in facts.sources] == [SECOND]
        assert [reading.progress for reading in facts.lakes[0].readings] == [Progress.WAITING]
        assert f"its window {SECOND} has landed but is not embedded" in explain(facts, NOW)[0]

    def test_sees_that_a_window_landed_again_or_is_being_embedded(self, lake: Lake) -> None:
        land(lake, FIRST, [listing("a")])
        embedded(lake, FIRST)
        table = listing("a", minute=5)
        lake.remove_folder(lake.folder(LISTINGS, FIRST))
        land(lake, FIRST, [table])
        assert [reading.progress for reading in of_lake("a").readings] == [Progress.REPLACED]
        Ledger(Embeddings(lake, ENCODER)).begin([FIRST], "two", NOW)
        [reading] = of_lake("a").readings
        assert (reading.progress, reading.attempt, reading.at) == (Progress.RUNNING, "two", NOW)

    def test_does_not_look_into_windows_that_are_embedded_and_not_named(self, lake: Lake) -> None:
        land(lake, FIRST, [listing("a")])
        embedded(lake, FIRST)
        assert trace("a", load_settings()).sources == ()

    def test_says_how_many_windows_it_left_out(self, lake: Lake) -> None:
        for hour in range(26):
            start = FIRST.start + timedelta(hours=hour)
            window = Window(start, start + timedelta(hours=1))
            land(lake, window, [listing("a", window)])
        facts = trace("a", load_settings())
        assert len(facts.sources) == 24
        assert facts.troubles[-1].startswith("2 older windows")

    def test_tells_what_is_wrong_with_an_invalid_row(self, lake: Lake) -> None:
        land_unchecked(lake, FIRST, [listing("a", minute=60 * 48)])
        [source] = trace("a", load_settings()).sources
        assert source.problem is not None
        assert "is not before the end" in source.problem

    def test_is_told_alone_when_there_is_no_cluster(self, lake: Lake) -> None:
        put_items(lake, ENCODER, [listing("a")], [AXIS])
        facts = trace("a", load_settings())
        assert facts.indexes is None
        assert facts.troubles[0].startswith("The indexes were not looked at: LENS_ELASTICSEARCH_URL is not set")


class TestAnIndex:
    @pytest.fixture
    def settings(self, elasticsearch_url: str) -> Settings:
        return load_settings(elasticsearch_url=elasticsearch_url, alias=f"test-{uuid4().hex[:8]}")

    @pytest.fixture
    def search_index(self, settings: Settings) -> Iterator[SearchIndex]:
        search_index = SearchIndex.connect(settings, patience_s=60)
        yield search_index
        remove_indexes(search_index)

    def test_tells_its_document_and_how_it_compares(
        self, lake: Lake, settings: Settings, search_index: SearchIndex
    ) -> None:
        one, sold, bad, late = (listing(name) for name in ("a", "sold", "bad", "late"))
        sold = listing("sold", status=Status.SOLD)
        version = put_items(lake, ENCODER, [one, sold, bad], [AXIS, None, AXIS])
        name = Builds(search_index).begin(CARD, owner="test", because="a test").index
        loads = Loads(search_index, search_index.get(name))
        load = Load(since=0, version=version, expected=3, forgets_before=NOW, started_at=NOW)
        loads.begin(load)
        search_index.write(name, [one], [AXIS])
        refused = Written(2, 1, 0, (Refusal("bad", bad.version, "too long"),))
        loads.record(load, Part(0), refused, forgotten=1)
        loads.finish(load, NOW)
        search_index.finish_load(name)
        search_index.swap(name)
        put_items(lake, ENCODER, [late], [AXIS])

        def of(item_id: str) -> tuple[InIndex, str]:
            facts = trace(item_id, settings)
            assert facts.indexes is not None
            [index] = facts.indexes
            return index, str(compare(index, facts.lakes[0]))

        index, beside = of("a")
        assert (index.name, index.state, index.space, index.reached) == (name, "live", CARD.space, version)
        assert (index.version, index.status, index.findable, beside) == (one.version, "on_sale", True, "same")
        assert of("bad")[1].startswith("missing: Elasticsearch refused its newest version (too long)")
        assert of("sold")[1] == "missing: it was sold long before the index was begun, and left out"
        assert of("late")[1].startswith(f"missing: the index is loaded up to version {version} of {version + 1}")
        assert of("nothing")[1] == "same: neither has it"
