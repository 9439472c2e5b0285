"""The tasks that DAGs are wired from: what a run is told to embed, and by what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from tiny import FIRST, land, land_sessions, listing, put_items, remove_indexes

from listing_lens.errors import LensError
from listing_lens.lake.dead_letters import DeadLetters, Letter
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.records import Refused
from listing_lens.lake.searches import GRACE, search_log
from listing_lens.lake.window import Window
from listing_lens.lake.windows import SESSIONS, Lake
from listing_lens.search.index import SearchIndex
from listing_lens.search.loads import Load, Loads
from listing_lens.settings import load_settings
from models.embedder import EmbedderCard
from plugins import tasks

Interval = Callable[[datetime | None, datetime | None], None]

_BOUNDS = {"window_start": "2026-11-01T00:00:00+00:00", "window_end": "2026-11-02T00:00:00+00:00"}


@pytest.fixture
def interval(monkeypatch: pytest.MonkeyPatch) -> Interval:
    """Give the run a data interval."""

    def give(start: datetime | None, end: datetime | None) -> None:
        context = {"data_interval_start": start, "data_interval_end": end}
        monkeypatch.setattr(tasks, "get_current_context", lambda: context)

    give(FIRST.start, FIRST.end)
    return give


@pytest.fixture
def search_index(
    elasticsearch_url: str, untrained_siglip: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SearchIndex]:
    """No index yet, behind an alias of this test's own."""
    monkeypatch.setenv("LENS_ELASTICSEARCH_URL", elasticsearch_url)
    monkeypatch.setenv("LENS_ENCODER", str(untrained_siglip))
    monkeypatch.setenv("LENS_ALIAS", f"test-{uuid4().hex[:8]}")
    search_index = SearchIndex.connect(load_settings())
    yield search_index
    remove_indexes(search_index)


def find_encoder(encoder: str | None) -> dict[str, str]:
    return tasks.find_encoder.function(encoder)


def find_other_encoders(encoder: str | None, embedded_by: str) -> list[dict[str, str]]:
    return tasks.find_other_encoders.function(encoder, embedded_by)


_CARD = EmbedderCard(
    encoder_source="google/siglip", encoder_id="siglip-12345678", encoder_dims=768, projection_id="00000001", dims=8
)


class TestFindEncoders:
    def test_are_whole_arguments_of_the_job_the_live_index_s_alone(
        self, interval: Interval, search_index: SearchIndex, untrained_siglip: Path
    ) -> None:
        land(Lake(load_settings().lake), FIRST, [])
        index = search_index.create(_CARD, "live")
        assert find_encoder(None) == _BOUNDS | {"encoder": str(untrained_siglip)}
        assert find_other_encoders(None, str(untrained_siglip)) == [_BOUNDS | {"encoder": "google/siglip"}]
        search_index.swap(index.name)
        assert find_encoder(None) == _BOUNDS | {"encoder": "google/siglip"}
        assert find_other_encoders(None, "google/siglip") == [_BOUNDS | {"encoder": str(untrained_siglip)}]

    def test_is_the_one_that_was_asked_for_alone(self, interval: Interval) -> None:
        land(Lake(load_settings().lake), FIRST, [])
        assert find_encoder("pixels:16") == _BOUNDS | {"encoder": "pixels:16"}
        assert find_other_encoders("pixels:16", "pixels:16") == []

    def test_are_looked_for_once_the_window_has_landed(self, interval: Interval) -> None:
        with pytest.raises(LensError, match="listings of .* have not landed"):
            find_encoder(None)


class TestFeeding:
    """The tasks of an index that is not live cannot fail the run of the live one."""

    @pytest.fixture
    def load_live(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Says how the load of the live index ended."""

        def ended(state: str) -> None:
            ti = SimpleNamespace(
                dag_id="a", run_id="r", get_task_states=lambda *_, **__: {"r": {tasks.LOAD_LIVE: state}}
            )
            monkeypatch.setattr(tasks, "get_current_context", lambda: {"ti": ti})

        return ended

    def test_others_are_those_that_are_fed_and_were_filled(self, search_index: SearchIndex, load_live: Any) -> None:
        load_live("success")
        live, kept, filling = (search_index.create(_CARD, name) for name in ("live", "kept", "filling"))
        search_index.swap(live.name)
        moment = FIRST.start
        vector = np.eye(1, 768, dtype=np.float32)[0]
        version = put_items(Lake(load_settings().lake), _CARD.encoder_id, [listing("a")], [vector])
        load = Load(since=0, version=version, expected=0, forgets_before=None, started_at=moment)
        for index in (live, kept):
            Loads(search_index, index).begin(load)
            Loads(search_index, index).finish(load, moment)
        Loads(search_index, filling).begin(load)
        assert tasks.find_other_indexes.function(None) == [{"index": kept.name}]
        assert tasks.find_other_indexes.function("pixels:4") == []
        # The live one as well, if the alias moved to it after the load of what was live then.
        put_items(Lake(load_settings().lake), _CARD.encoder_id, [listing("b")], [vector])
        assert {"index": live.name} in tasks.find_other_indexes.function(None)
        # They are looked for whatever became of the live one, but not if there was nothing to load.
        load_live("failed")
        assert {"index": kept.name} in tasks.find_other_indexes.function(None)
        for nothing_embedded in ("skipped", "upstream_failed"):
            load_live(nothing_embedded)
            with pytest.raises(AirflowSkipException):
                tasks.find_other_indexes.function(None)

    @pytest.mark.parametrize("state", ["success", "skipped"])
    def test_a_run_succeeds_with_the_live_index(self, load_live: Any, state: str) -> None:
        load_live(state)
        tasks.require_live_is_fed.function()

    @pytest.mark.parametrize("state", ["failed", "upstream_failed"])
    def test_and_fails_with_it(self, load_live: Any, state: str) -> None:
        load_live(state)
        with pytest.raises(AirflowFailException, match=f"load_live is {state}: the live index lacks listings"):
            tasks.require_live_is_fed.function()


def set_aside(encoder_id: str, *letters: Letter) -> None:
    DeadLetters(Embeddings(Lake(load_settings().lake), encoder_id)).add(letters)


def letter(*, ago: timedelta, transient: bool = True) -> Letter:
    """Of a listing whose photo could not be had, once."""
    failed_at = datetime.now(UTC) - ago
    return Letter.of_listing(listing("a"), FIRST, "fetch", "no answer", transient=transient, attempts=1, now=failed_at)


def find_due(encoder: str | None, every: bool = False) -> list[dict[str, Any]]:
    return tasks.find_due.function(encoder, every)


_LONG_AGO = timedelta(hours=1)


class TestFindDue:
    def test_are_whole_arguments_of_the_job_for_each_encoder_in_use_that_has_letters_to_try(
        self, search_index: SearchIndex, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LENS_ENCODER", "pixels:4")
        card = EmbedderCard(
            encoder_source="pixels:8", encoder_id="pixels-8", encoder_dims=192, projection_id="00000001", dims=8
        )
        search_index.create(card, "live")
        assert find_due(None) == []
        for encoder_id in ("pixels-4", "pixels-8", "pixels-16"):
            set_aside(encoder_id, letter(ago=_LONG_AGO))
        assert find_due(None) == [{"encoder": "pixels:4", "all": False}, {"encoder": "pixels:8", "all": False}]

    def test_is_the_encoder_that_was_asked_for_alone(self) -> None:
        for encoder_id in ("pixels-4", "pixels-16"):
            set_aside(encoder_id, letter(ago=_LONG_AGO))
        assert find_due("pixels:16") == [{"encoder": "pixels:16", "all": False}]

    @pytest.mark.parametrize(
        ("ago", "transient"),
        # So lately that no machine is slow enough for it to be due.
        [(timedelta(days=-1), True), (_LONG_AGO, False)],
        ids=["tried lately", "will not pass by itself"],
    )
    def test_others_are_tried_when_all_are_to_be(self, ago: timedelta, transient: bool) -> None:
        set_aside("pixels-4", letter(ago=ago, transient=transient))
        assert find_due("pixels:4") == []
        assert find_due("pixels:4", every=True) == [{"encoder": "pixels:4", "all": True}]

    def test_a_row_that_is_no_listing_is_never_tried(self) -> None:
        set_aside("pixels-4", Letter.of_refused(Refused("a", "it has no title", "{}"), FIRST, FIRST.end))
        assert find_due("pixels:4", every=True) == []

    def test_an_encoder_that_has_embedded_nothing_yet_has_none(self) -> None:
        assert find_due("pixels:4", every=True) == []


class TestTheLogOfSearches:
    """Of a window that ended a while ago, and of which a search was logged."""

    @pytest.fixture
    def ended(self, interval: Interval) -> Callable[[timedelta], Window]:
        def give(ago: timedelta) -> Window:
            end = datetime.now(UTC).replace(microsecond=0) - ago
            window = Window(end - timedelta(hours=1), end)
            interval(window.start, window.end)
            search_log(Lake(load_settings().lake)).append([{"at": window.start.isoformat()}], window.start, "host.1")
            return window

        return give

    def test_is_waited_for_as_long_as_late_taps_may_come(self, ended: Callable[[timedelta], Window]) -> None:
        ended(GRACE / 2)
        assert tasks.wait_for_log.function() is False
        ended(GRACE)
        assert tasks.wait_for_log.function() is True

    def test_is_not_waited_for_where_sessions_came_from_elsewhere(self, ended: Callable[[timedelta], Window]) -> None:
        land_sessions(Lake(load_settings().lake), ended(timedelta(0)), [])
        with pytest.raises(AirflowSkipException, match="did not come from the log of searches"):
            tasks.wait_for_log.function()

    def test_is_not_waited_for_where_nothing_was_logged(self, interval: Interval) -> None:
        with pytest.raises(AirflowSkipException, match="nothing is in the log of searches"):
            tasks.wait_for_log.function()

    def test_is_forgotten_by_the_setting(
        self, ended: Callable[[timedelta], Window], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ended(timedelta(days=3))
        land_sessions(Lake(load_settings().lake), FIRST, [])
        assert tasks.forget_searches.function() == {"days": 0, "windows": 0}
        monkeypatch.setenv("LENS_SEARCH_LOG_DAYS", "1")
        assert tasks.forget_searches.function() == {"days": 1, "windows": 0}
        assert Lake(load_settings().lake).windows(SESSIONS) == [FIRST]


def test_a_run_without_a_window_is_refused_for_good(interval: Interval) -> None:
    assert tasks.require_window.function() == FIRST.name
    for start, end in ((None, None), (FIRST.start, FIRST.start)):
        interval(start, end)
        with pytest.raises(AirflowFailException, match="window|data interval"):
            tasks.require_window.function()
