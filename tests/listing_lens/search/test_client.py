"""A patient client outlasts a cluster that is away or busy, within its patience; an impatient one says so at once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from uuid import uuid4

import pytest
from elastic_transport import ConnectionError as NoConnection
from elasticsearch import ApiError, Elasticsearch, NotFoundError
from false_time import FalseTime
from faulty_proxy import FaultyProxy, answer, drop, hold
from hypothesis import given
from hypothesis import strategies as st

from listing_lens.errors import LensError
from listing_lens.search.client import BUSY, Clock, PatientTransport, attempts, connect_client, said_plainly
from listing_lens.settings import load_settings


@pytest.fixture
def proxy(elasticsearch_url: str) -> Iterator[FaultyProxy]:
    with FaultyProxy(elasticsearch_url) as proxy:
        yield proxy


@pytest.fixture
def name(elasticsearch_url: str) -> Iterator[str]:
    """The name of an index, deleted afterwards."""
    name = f"test-client-{uuid4().hex[:8]}"
    yield name
    Elasticsearch(elasticsearch_url).indices.delete(index=name, ignore_unavailable=True)


def _client(proxy: FaultyProxy, time: FalseTime, patience_s: float = 600.0) -> Elasticsearch:
    return connect_client(load_settings(elasticsearch_url=proxy.url), patience_s=patience_s, clock=time.clock)


@pytest.mark.parametrize("status", sorted(BUSY))
def test_a_busy_cluster_is_asked_again_after_ever_longer_pauses(proxy: FaultyProxy, status: int) -> None:
    time = FalseTime()
    proxy.add(answer(status), times=9)
    assert _client(proxy, time).cluster.health()["status"]
    assert time.pauses == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 15, 15])
    assert len(proxy.requests) == 10


@pytest.mark.parametrize("applied", [True, False])
def test_a_request_that_lost_its_answer_is_made_again(proxy: FaultyProxy, name: str, applied: bool) -> None:
    client = _client(proxy, FalseTime())
    proxy.add(drop(applied=applied), path="/_doc/", times=2)
    made = client.index(index=name, id="a", document={"n": 1})
    assert made["_version"] == (3 if applied else 1)


def test_a_repetition_may_meet_its_own_effect(proxy: FaultyProxy, name: str) -> None:
    proxy.add(drop(applied=True), times=1)
    with pytest.raises(ApiError, match="resource_already_exists"):
        _client(proxy, FalseTime()).indices.create(index=name)


def test_a_request_that_timed_out_is_made_again(proxy: FaultyProxy) -> None:
    end = threading.Event()
    time = FalseTime(lambda pauses: end.set())
    proxy.add(hold(end), times=1)
    assert _client(proxy, time).options(request_timeout=0.5).cluster.health()["status"]
    assert time.pauses


def test_a_cluster_that_went_away_is_waited_for(proxy: FaultyProxy) -> None:
    time = FalseTime(lambda pauses: proxy.come_back() if pauses == 30 else None)
    client = _client(proxy, time)
    client.cluster.health()
    proxy.go_away()
    assert client.cluster.health()["status"]
    assert len(time.pauses) == 30


def test_nodes_that_all_went_away_are_waited_for(proxy: FaultyProxy) -> None:
    with FaultyProxy(proxy.node_url) as second:
        time = FalseTime(lambda pauses: second.come_back() if pauses == 10 else None)
        transport = partial(PatientTransport, patience_s=600.0, clock=time.clock)
        client = Elasticsearch([proxy.url, second.url], transport_class=transport)  # type: ignore[arg-type]
        proxy.go_away()
        second.go_away()
        assert client.cluster.health()["status"]


def test_patience_ends_with_the_last_answer(proxy: FaultyProxy) -> None:
    time = FalseTime()
    proxy.add(answer(503))
    with pytest.raises(ApiError, match="503"):
        _client(proxy, time, patience_s=60).cluster.health()
    assert time.seconds == pytest.approx(60)


def test_patience_ends_with_the_last_failure(proxy: FaultyProxy) -> None:
    time = FalseTime()
    client = _client(proxy, time, patience_s=60)
    proxy.go_away()
    with pytest.raises(NoConnection):
        client.cluster.health()
    assert time.seconds == pytest.approx(60)


def test_what_is_no_matter_of_time_is_asked_once(proxy: FaultyProxy) -> None:
    with pytest.raises(NotFoundError):
        _client(proxy, FalseTime()).indices.get(index="no-such-index")
    assert len(proxy.requests) == 1


def test_without_patience_there_are_a_few_attempts_at_once(proxy: FaultyProxy) -> None:
    time = FalseTime()
    proxy.add(answer(503))
    with pytest.raises(ApiError, match="503"):
        _client(proxy, time, patience_s=0).cluster.health()
    assert len(proxy.requests) == 4
    assert time.pauses == []


def test_waiting_is_logged_but_not_at_every_attempt(proxy: FaultyProxy, caplog: pytest.LogCaptureFixture) -> None:
    proxy.add(answer(429), times=41)
    with caplog.at_level(logging.WARNING, "listing_lens.search.client"):
        _client(proxy, FalseTime()).cluster.health()
    said = [record.getMessage() for record in caplog.records if record.name == "listing_lens.search.client"]
    assert said[0] == "waiting up to 600 s for Elasticsearch: GET /_cluster/health got the answer 429"
    assert len(said) == 3 + 4


@given(patience_s=st.floats(0, 1000), chances=st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_pauses_are_of_random_length_and_end_with_the_patience(patience_s: float, chances: list[float]) -> None:
    time, drawn = FalseTime(), iter(chances)
    bounds: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        bounds.append((low, high))
        return low + (high - low) * next(drawn, 1.0)

    left = list(attempts(patience_s, Clock(time.clock.now, time.clock.sleep, uniform)))
    assert left[0] == patience_s
    assert left[-1] <= 0 or patience_s == 0
    assert len(left) == len(time.pauses) + 1
    assert time.seconds == pytest.approx(patience_s)
    assert bounds == [(0, min(0.2 * 2**n, 15)) for n in range(len(bounds))]


@dataclass(frozen=True)
class _Asking:
    client: Elasticsearch

    @said_plainly
    def ask(self, index: str) -> bool:
        """Ask."""
        return bool(self.client.indices.get(index=index))


def test_an_answer_that_is_an_error_is_one_sentence(elasticsearch_url: str) -> None:
    asking = _Asking(connect_client(load_settings(elasticsearch_url=elasticsearch_url), patience_s=0))
    with pytest.raises(LensError, match=f"{elasticsearch_url} answered 404 to ask: index_not_found_exception; check"):
        asking.ask("no-such-index")


def test_no_connection_is_one_sentence() -> None:
    asking = _Asking(connect_client(load_settings(elasticsearch_url="http://127.0.0.1:1"), patience_s=0))
    with pytest.raises(LensError, match="127.0.0.1:1 cannot be reached: start it with `lens up`"):
        asking.ask("a")


def test_a_timeout_is_one_sentence(proxy: FaultyProxy) -> None:
    end = threading.Event()
    proxy.add(hold(end))
    client = connect_client(load_settings(elasticsearch_url=proxy.url), patience_s=0).options(request_timeout=0.1)
    with pytest.raises(LensError, match="failed to ask: Connection timed out"):
        _Asking(client).ask("a")
    end.set()


def test_no_address_says_what_to_set() -> None:
    with pytest.raises(LensError, match="LENS_ELASTICSEARCH_URL is not set"):
        connect_client(load_settings(elasticsearch_url=""), patience_s=0)
