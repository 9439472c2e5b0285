"""Landing sessions: a day of searching and tapping, written by the service's own log, becomes what the evaluation reads."""

from __future__ import annotations

import asyncio
import io
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from PIL import Image
from tiny import bounds, land_sessions, photo

from beam_jobs import compact_lake, evaluate_sessions
from beam_jobs.land_sessions import configure, main, run
from beam_jobs.launcher import refusal
from listing_lens.embedding.embedder import Embedder
from listing_lens.errors import LensError
from listing_lens.lake.fits import load_fit
from listing_lens.lake.log import written_at
from listing_lens.lake.records import Query, Session
from listing_lens.lake.searches import GRACE, is_from_log, search_log
from listing_lens.lake.window import Window
from listing_lens.lake.windows import SESSIONS, Lake, Manifest, evaluations
from listing_lens.search.index import Index
from listing_lens.search.queries import Hit
from listing_lens.serving.batched_log import BatchedLog
from listing_lens.serving.live_space import LiveSpace
from listing_lens.serving.query_embedder import InProcessEmbedder
from listing_lens.serving.query_texts import QueryTexts
from listing_lens.serving.search_log import SearchLog, new_id
from listing_lens.serving.wire import Event

# A day that is over, and that is not forgotten yet, whenever the tests run.
_TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
DAY = Window(_TODAY - timedelta(days=3), _TODAY - timedelta(days=2))
NOON = DAY.start + timedelta(hours=12)
SHOWN = tuple(f"m{n:03d}" for n in (4, 5, 6, 7, 8, 9, 10, 11))


class Service:
    """What a service writes, at times of the test's choice."""

    def __init__(self, lake: Lake, live: LiveSpace) -> None:
        self.lake, self.live, self.at, self.batches = lake, live, NOON, 0
        self.log = SearchLog(BatchedLog(search_log(lake), 1.0, now=self._written_at), now=lambda: self.at)

    def _written_at(self) -> datetime:
        """No two batches are written at once."""
        self.batches += 1
        return self.at + timedelta(microseconds=self.batches)

    def search(self, seed: int | None, at: datetime = NOON, shown: Iterable[str] = SHOWN) -> str:
        """A search by a photo, or by an item if there is none. Returns its id."""
        self.at = at
        search_id = new_id(at)
        image = None if seed is None else Image.open(io.BytesIO(photo(seed))).convert("RGB")
        asked = {"surface": "similar" if image is None else "photo", "k": 20}
        hits = [Hit(item, 0.5, item, ("A",), 1, "on_sale", "") for item in shown]
        asyncio.run(self._keep(search_id, hits, asked, image))
        return search_id

    async def _keep(self, search_id: str, hits: list[Hit], asked: dict[str, Any], image: Image.Image | None) -> None:
        await self.log.keep(search_id, self.live, hits, asked, () if image is None else (image,))
        assert self.log.log is not None
        await self.log.log.flush()

    def tell(self, search_id: str, *told: tuple[str, str], at: datetime = NOON) -> None:
        """What a buyer did: pairs of a kind and an item."""
        self.at = at
        asyncio.run(self._tell([Event(kind=kind, search_id=search_id, item_id=item) for kind, item in told]))  # type: ignore[arg-type]

    async def _tell(self, events: list[Event]) -> None:
        assert self.log.log is not None
        storing = asyncio.create_task(self.log.store_events(events))
        await asyncio.sleep(0)
        await self.log.log.flush()
        assert await storing == len(events)


@pytest.fixture
def service(lake: Lake, embedded_marketplace: Path) -> Iterator[Service]:
    """A service over a tiny marketplace that is embedded and fitted."""
    shutil.copytree(embedded_marketplace, lake.root)
    card = load_fit(lake, "fit").card
    with ThreadPoolExecutor(1) as threads:
        embedder = InProcessEmbedder(Embedder.load(card, lake), card, threads)
        index = Index("an-index", card, "one", "a-uuid", DAY.start)
        yield Service(lake, LiveSpace(index, embedder, QueryTexts(None, "not asked for", threads)))


def sessions(lake: Lake, window: Window = DAY) -> dict[str, dict[str, Any]]:
    return {row["session_id"]: row for batch in lake.read(SESSIONS, [window]) for row in batch.to_pylist()}


def counts(lake: Lake, window: Window = DAY) -> dict[str, int]:
    """What the manifest counts, zeros left out."""
    return {name: count for name, count in lake.manifest(SESSIONS, window).counts.items() if count}


def evaluate(service: Service) -> Manifest:
    card = service.live.index.card
    evaluate_sessions.main([*bounds(DAY), "--card", card.model_dump_json()])
    return service.lake.manifest(evaluations(card.space), DAY)


def test_a_day_of_clicking_feeds_the_evaluation(service: Service) -> None:
    midnight = DAY.end - timedelta(milliseconds=1)
    tapped = service.search(7)
    service.tell(tapped, ("impression", "m004"), ("tap", "m007"), ("view", "m007"))
    late = service.search(9, midnight)
    service.tell(late, ("purchase", "m009"), at=DAY.end + timedelta(minutes=10))
    only_seen = service.search(5)
    service.tell(only_seen, ("view", "m005"), ("tap", "nothing that was shown"))
    service.tell(service.search(None), ("tap", "m004"))
    service.search(7, shown=())
    service.search(7, DAY.start - timedelta(milliseconds=1))
    service.search(7, DAY.end)
    service.tell(new_id(NOON), ("tap", "m004"))
    # As when a phone sends again what was stored already.
    service.tell(tapped, ("tap", "m007"), at=midnight)
    main(bounds(DAY))

    found = sessions(service.lake)
    assert {
        name: [i for i, tap in zip(row["shown"], row["tapped"], strict=True) if tap] for name, row in found.items()
    } == {
        tapped: ["m007"],
        late: ["m009"],
        only_seen: [],
    }
    assert all(tuple(row["shown"]) == SHOWN for row in found.values())
    assert found[late]["searched_at"] == midnight
    assert counts(service.lake) == {
        "rows": 3,
        # The one at the end of the day is in a file that tells of the day as well.
        "searches": 6,
        "searches_similar": 1,
        "searches_nothing_shown": 1,
        "searches_elsewhere": 1,
        "events": 9,
        "events_chosen": 2,
        "events_seen": 3,
        "events_not_shown": 1,
        "events_similar": 1,
        "events_unknown": 1,
        "events_repeated": 1,
    }
    # The photos are read where the service left them, and there alone.
    [photos] = {str(path.parent) for path in Path(service.lake.root).rglob("*.jpg") if tapped in path.name}
    assert photos == f"{service.lake.root}/logs/searches/day={DAY.start.date()}/photos"

    evaluation = evaluate(service)
    assert +Counter(evaluation.counts) == {"read": 3, "evaluated": 2, "nothing_tapped": 1}
    # Each photo is of the very item that was chosen.
    assert evaluation.parameters["metrics"]["embedding/precision@1"] == 1


def test_landed_again_it_is_the_same_and_what_came_late_is_added(service: Service) -> None:
    search_id = service.search(7)
    main(bounds(DAY))
    before = sessions(service.lake)
    main(bounds(DAY))
    assert sessions(service.lake) == before
    # A lake that could not be written to for a while.
    service.tell(search_id, ("tap", "m004"), at=DAY.end + GRACE - timedelta(seconds=1))
    service.tell(search_id, ("tap", "m005"), at=DAY.end + GRACE)
    main(bounds(DAY))
    assert sessions(service.lake)[search_id]["tapped"] == [True] + 7 * [False]


def test_batches_that_were_written_twice_count_once(service: Service) -> None:
    service.tell(service.search(7), ("tap", "m007"))
    log = search_log(service.lake)
    for path in log.files(DAY.start, DAY.end):
        log.append(list(log.read(path)), written_at(path), "another")
    main(bounds(DAY))
    assert counts(service.lake) == {
        "rows": 1,
        "searches": 2,
        "searches_repeated": 1,
        "events": 2,
        "events_chosen": 1,
        "events_repeated": 1,
    }


def test_sessions_that_came_from_elsewhere_stay(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    service.search(7)
    land_sessions(service.lake, DAY, [Session("theirs", NOON, Query(("m007.jpg",)), ("m007",), (True,))])
    with caplog.at_level("INFO"):
        main(bounds(DAY))
    assert list(sessions(service.lake)) == ["theirs"]
    assert f"sessions of {DAY} did not come from the log of searches: they are left as they are" in caplog.text


def test_sessions_that_came_from_elsewhere_meanwhile_stay(service: Service) -> None:
    service.search(7)
    config = configure(DAY, datetime.now(UTC))
    assert config is not None
    land_sessions(service.lake, DAY, [Session("theirs", NOON, Query(("m007.jpg",)), ("m007",), (True,))])
    with pytest.raises(Exception, match="meanwhile, sessions of") as failure, beam.Pipeline() as pipeline:
        run(pipeline | beam.Create(config.spans), config)
    assert (refusal(failure.value) or "").endswith("they are left as they are")
    assert list(sessions(service.lake)) == ["theirs"]


def test_where_nothing_was_logged_nothing_lands(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        main(bounds(DAY))
    assert service.lake.windows(SESSIONS) == []
    assert "nothing is in the log of searches" in caplog.text
    with pytest.raises(LensError, match="sessions of .* have not landed"):
        evaluate(service)


def test_a_day_without_a_search_by_photo_is_an_empty_one(service: Service) -> None:
    service.search(None)
    main(bounds(DAY))
    manifest = service.lake.manifest(SESSIONS, DAY)
    assert is_from_log(manifest)
    assert (manifest.files, manifest.counts["rows"], manifest.counts["searches"]) == ({}, 0, 1)
    with pytest.raises(Exception, match="no session of"):
        evaluate(service)


def test_what_may_still_be_tapped_is_not_landed_yet(service: Service) -> None:
    service.search(7)
    with pytest.raises(LensError, match=rf"may still be tapped: land its sessions after {DAY.end.date()}T01:00\+00:00"):
        configure(DAY, DAY.end + GRACE - timedelta(seconds=1))
    assert configure(DAY, DAY.end + GRACE) is not None


def test_a_session_is_landed_in_one_window(service: Service) -> None:
    service.search(7)
    main(bounds(DAY))
    with pytest.raises(LensError, match="would be counted twice with those of"):
        main(bounds(Window(DAY.start, DAY.end + timedelta(days=1))))


def test_a_damaged_line_is_named(service: Service) -> None:
    service.search(7)
    [file] = search_log(service.lake).files(DAY.start, DAY.end)
    Path(file).write_bytes(Path(file).read_bytes() + b'{"half')
    with pytest.raises(Exception, match="is not JSON") as failure:
        main(bounds(DAY))
    assert f"{file}, line 2, is not JSON" in (refusal(failure.value) or "")
    assert service.lake.windows(SESSIONS) == []


class TestWhatIsForgotten:
    @pytest.fixture
    def forgotten(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
        """A day that was landed, and then outlived what is said of searches."""
        service.tell(service.search(7), ("tap", "m007"))
        # Written after midnight, so in the next day's log.
        service.search(9, DAY.end)
        main(bounds(DAY))
        monkeypatch.setenv("LENS_SEARCH_LOG_DAYS", "2")
        compact_lake.main([])
        return service

    def test_cannot_be_evaluated_and_the_refusal_says_why(self, forgotten: Service) -> None:
        kept = r"have not landed .*those from the search service's log are kept for LENS_SEARCH_LOG_DAYS=2 days"
        with pytest.raises(LensError, match=kept):
            evaluate(forgotten)

    def test_is_not_landed_from_what_is_left_of_it(self, forgotten: Service) -> None:
        assert search_log(forgotten.lake).days() == [DAY.end.date()]
        main(bounds(DAY))
        assert forgotten.lake.windows(SESSIONS) == []

    def test_is_not_landed_before_it_is_removed(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        service.search(7)
        monkeypatch.setenv("LENS_SEARCH_LOG_DAYS", "0")
        with pytest.raises(LensError, match="are forgotten after LENS_SEARCH_LOG_DAYS=0 days"):
            main(bounds(DAY))
