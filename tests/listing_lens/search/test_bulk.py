"""Whatever the node or the network does, each document is written, stale or refused, and the newest versions remain."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from elasticsearch import Elasticsearch
from false_time import FalseTime
from faulty_proxy import Exchange, Fault, FaultyProxy, Response, answer, drop, refuse_items
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from listing_lens.errors import LensError
from listing_lens.search.bulk import Written, write
from listing_lens.search.client import connect_client
from listing_lens.search.documents import Document, Refusal, properties
from listing_lens.settings import load_settings

_BULK = "/_bulk$"
_LONGEST_ID = 512


@dataclass
class _Target:
    """An index behind a faulty proxy, and the means to write to it and to look into it."""

    proxy: FaultyProxy
    time: FalseTime
    node: Elasticsearch
    name: str
    client: Elasticsearch = field(init=False)

    def __post_init__(self) -> None:
        settings = load_settings(elasticsearch_url=self.proxy.url)
        self.client = connect_client(settings, patience_s=600.0, clock=self.time.clock)

    @property
    def alias(self) -> str:
        return f"{self.name}.write"

    def write(self, documents: Iterator[Document | Refusal] | list[Document | Refusal], **options: Any) -> Written:
        return write(self.client, self.alias, documents, clock=self.time.clock, **options)

    def held(self) -> dict[str, tuple[int, str]]:
        """The version and title of every document."""
        self.node.indices.refresh(index=self.name)
        hits = self.node.search(index=self.name, size=10_000, version=True)["hits"]["hits"]
        return {hit["_id"]: (hit["_version"], hit["_source"]["title"]) for hit in hits}

    def sent(self) -> list[list[str]]:
        """The ids in each bulk request so far."""
        return [[action["_id"] for action, _ in request.actions] for request in self.proxy.requests]


@pytest.fixture
def target(elasticsearch_url: str) -> Iterator[_Target]:
    node, name = Elasticsearch(elasticsearch_url), f"test-bulk-{uuid4().hex[:8]}"
    with FaultyProxy(elasticsearch_url) as proxy:
        target = _Target(proxy, FalseTime(), node, name)
        node.indices.create(
            index=name,
            aliases={target.alias: {}},
            settings={"number_of_replicas": 0},
            mappings={"dynamic": "strict", "properties": properties(4, {"type": "hnsw"})},
        )
        yield target
    node.indices.delete(index=name, ignore_unavailable=True)


def _document(item_id: str, version: int = 1, **changes: object) -> Document:
    source = {"item_id": item_id, "title": f"{item_id} {version}", "vector": np.array([1, 0, 0, 0], np.float32)}
    return Document(item_id, version, source | changes)


def _documents(*item_ids: str) -> list[Document | Refusal]:
    return [_document(item_id) for item_id in item_ids]


_BAD_VECTOR = np.array([1, 1, 1, 1], np.float32)


# ---- what becomes of documents ---------------------------------------------------------------------------------------


def test_each_document_is_written_stale_or_refused(target: _Target) -> None:
    target.write([_document("old", 5)])
    outcome = target.write(
        [
            _document("new"),
            _document("old", 4),
            _document("old", 5),
            _document("vector", vector=_BAD_VECTOR),
            _document("date", created_at="yesterday"),
            _document("field", colour="red"),
            Refusal("before", 1, "it was refused before"),
        ]
    )
    assert (outcome.read, outcome.written, outcome.stale) == (7, 2, 1)
    reasons = {refusal.item_id: refusal.reason for refusal in outcome.refused}
    assert reasons.keys() == {"vector", "date", "field", "before"}
    assert reasons["before"] == "it was refused before"
    assert reasons["vector"].startswith("The [dot_product] similarity can only be used with unit-length vectors")
    assert reasons["date"] == (
        "failed to parse date field [yesterday] with format [strict_date_optional_time||epoch_millis]"
    )
    assert "dynamic introduction of [colour]" in reasons["field"]
    assert target.held() == {"old": (5, "old 5"), "new": (1, "new 1")}


def test_nothing_is_written_of_nothing(target: _Target) -> None:
    assert target.write([]) == Written()
    assert target.write([Refusal("a", 1, "why")]) == Written(1, refused=(Refusal("a", 1, "why"),))
    assert target.proxy.requests == []


def test_what_is_no_json_is_refused(target: _Target) -> None:
    outcome = target.write([_document("a", title="\ud800"), _document("b", price=2**70), _document("c")])
    assert (outcome.read, outcome.written) == (3, 1)
    assert [refusal.item_id for refusal in outcome.refused] == ["a", "b"]
    assert outcome.refused[0].reason == "it cannot be written as JSON: str is not valid UTF-8: surrogates not allowed"


@pytest.mark.parametrize("writers", [1, 4])
def test_of_an_item_that_comes_several_times_the_newest_version_remains(target: _Target, writers: int) -> None:
    versions = [3, 1, 7, 2, 7, 6, 5, 4]
    outcome = target.write([_document("a", version) for version in versions], writers=writers, batch_documents=1)
    assert outcome.written + outcome.stale == outcome.read == len(versions)
    assert target.held() == {"a": (7, "a 7")}


def test_outcomes_that_do_not_add_up_are_an_error(target: _Target) -> None:
    def shortened(exchange: Exchange) -> Response:
        response = exchange.forward()
        return replace(response, body=json.dumps({"items": json.loads(response.body)["items"][1:]}).encode())

    target.proxy.add(shortened)
    with pytest.raises(
        LensError, match="of 3 documents, 2 were written, 0 were stale and 0 refused, which does not add"
    ):
        target.write(_documents("a", "b", "c"))


# ---- a cluster that is busy or away ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_only_what_was_put_off_is_sent_again(target: _Target, status: int) -> None:
    target.proxy.add(refuse_items(status, {"a", "c"}), times=2)
    target.proxy.add(refuse_items(status, {"a"}), times=1)
    assert target.write(_documents("a", "b", "c")) == Written(read=3, written=3)
    assert target.sent() == [["a", "b", "c"], ["a", "c"], ["a", "c"], ["a"]]
    assert target.time.pauses == pytest.approx([0.2, 0.4, 0.8])


def test_patience_with_what_is_put_off_ends(target: _Target) -> None:
    target.proxy.add(refuse_items(429, {"b"}, reason="disk full"))
    with pytest.raises(
        LensError, match=r"put off 1 documents for 60 s, such as 'b' \(429: disk full\): write them again"
    ):
        target.write(_documents("a", "b"), patience_s=60)
    assert target.time.seconds == pytest.approx(60)
    assert target.held().keys() == {"a"}


def test_a_node_without_room_is_waited_for(target: _Target) -> None:
    def block(on: bool | None) -> None:
        target.node.indices.put_settings(index=target.name, settings={"index.blocks.read_only_allow_delete": on})

    block(True)
    target.time.meanwhile = lambda pauses: block(None) if pauses == 3 else None
    assert target.write(_documents("a")) == Written(read=1, written=1)
    assert len(target.time.pauses) == 3


@pytest.mark.parametrize(
    "fault", [answer(503), drop(applied=True), drop(applied=False)], ids=["503", "lost", "dropped"]
)
def test_a_request_that_failed_is_made_again(target: _Target, fault: Fault) -> None:
    target.proxy.add(fault, times=2)
    assert target.write(_documents("a", "b")) == Written(read=2, written=2)
    assert target.held() == {"a": (1, "a 1"), "b": (1, "b 1")}


def test_a_cluster_that_goes_away_in_the_middle_is_waited_for(target: _Target) -> None:
    def documents() -> Iterator[Document | Refusal]:
        for n in range(20):
            if n == 10:
                target.proxy.go_away()
            yield _document(str(n))

    target.time.meanwhile = lambda pauses: target.proxy.come_back() if pauses >= 5 else None
    assert target.write(documents(), batch_documents=2, writers=3) == Written(read=20, written=20)
    assert len(target.held()) == 20


def test_a_cluster_that_stays_away_is_an_error(target: _Target) -> None:
    target.proxy.go_away()
    with pytest.raises(LensError, match="cannot be reached"):
        target.write(_documents("a"))


# ---- what is no matter of one document -------------------------------------------------------------------------------


def test_an_index_that_was_deleted_ends_the_load(target: _Target) -> None:
    target.node.indices.delete(index=target.name)
    with pytest.raises(LensError, match=r"cannot be written to \(404: no such index .*: it was deleted or retired"):
        target.write(_documents("a"))
    assert not target.node.indices.exists(index=target.name)


def test_an_index_without_the_write_alias_ends_the_load(target: _Target) -> None:
    target.node.indices.delete_alias(index=target.name, name=target.alias)
    with pytest.raises(LensError, match="is not an alias"):
        target.write(_documents("a"))


def test_an_index_that_is_blocked_ends_the_load(target: _Target) -> None:
    target.node.indices.put_settings(index=target.name, settings={"index.blocks.write": True})
    with pytest.raises(LensError, match=r"\(403: index .* blocked by: .*: remove the block"):
        target.write(_documents("a"))


def test_an_index_that_is_closed_ends_the_load(target: _Target) -> None:
    target.node.indices.close(index=target.name)
    with pytest.raises(LensError, match=r"\(400: closed\): open it, and write again"):
        target.write(_documents("a"))


@pytest.mark.parametrize(
    ("status", "remedy"), [(500, "see the cluster's log"), (401, "check LENS_ELASTICSEARCH_API_KEY")]
)
def test_any_other_failure_of_the_cluster_ends_the_load(target: _Target, status: int, remedy: str) -> None:
    target.proxy.add(refuse_items(status, {"b"}))
    with pytest.raises(LensError, match=rf"cannot be written to \({status}: the proxy says so\): {remedy}"):
        target.write(_documents("a", "b"))
    assert len(target.proxy.requests) == 1


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_request_that_may_not_be_made_ends_the_load(target: _Target, status: int) -> None:
    target.proxy.add(answer(status))
    with pytest.raises(LensError, match=f"answered {status} to bulk: of_the_proxy; check LENS_ELASTICSEARCH_API_KEY"):
        target.write(_documents("a", "b"))
    assert len(target.proxy.requests) == 1


# ---- requests that are refused as a whole ----------------------------------------------------------------------------


def test_the_document_that_spoils_a_request_is_found(target: _Target) -> None:
    long = "x" * (_LONGEST_ID + 1)
    outcome = target.write(_documents("a", "b", long, "c", "d", "e"))
    assert (outcome.read, outcome.written, outcome.stale) == (6, 5, 0)
    [refusal] = outcome.refused
    assert (refusal.item_id, refusal.version) == (long, 1)
    assert "is too long, must be no longer than 512 bytes" in refusal.reason
    assert target.held().keys() == {"a", "b", "c", "d", "e"}


def test_what_is_too_large_for_whatever_lies_between_is_split(target: _Target) -> None:
    def small_door(exchange: Exchange) -> Response:
        return exchange.forward() if len(exchange.request.body) < 1000 else answer(413)(exchange)

    target.proxy.add(small_door)
    outcome = target.write([_document("large", title="x" * 2000), *_documents(*"abcdefgh")])
    assert (outcome.read, outcome.written) == (9, 8)
    assert outcome.refused == (Refusal("large", 1, "the proxy says so"),)
    assert target.held().keys() == set("abcdefgh")


def test_a_refusal_without_a_word_has_its_number(target: _Target) -> None:
    target.proxy.add(lambda exchange: Response(413, b"", {}))
    assert target.write(_documents("a")).refused == (Refusal("a", 1, "HTTP 413"),)


# ---- streaming -------------------------------------------------------------------------------------------------------


def test_requests_are_bounded_by_bytes_and_by_number(target: _Target) -> None:
    sizes = [100, 100, 5000, 100, 900, 900, 10, 10, 10, 10]
    documents: list[Document | Refusal] = [_document(str(n), title="x" * size) for n, size in enumerate(sizes)]
    assert target.write(documents, batch_bytes=2000, batch_documents=3).written == len(sizes)
    assert target.sent() == [["0", "1"], ["2"], ["3", "4"], ["5", "6", "7"], ["8", "9"]]
    assert [len(request.body) > 2000 for request in target.proxy.requests] == [False, True, False, False, False]


@pytest.mark.parametrize("writers", [1, 3])
def test_documents_are_drawn_no_faster_than_they_are_written_and_in_this_thread(target: _Target, writers: int) -> None:
    answered: list[str] = []

    def counted(exchange: Exchange) -> Response:
        response = exchange.forward()
        answered.append(response.body.decode())
        return response

    target.proxy.add(counted)
    here = threading.get_ident()

    def documents() -> Iterator[Document | Refusal]:
        for n in range(40):
            assert threading.get_ident() == here
            # One is being drawn and one waits; all others are in flight or done.
            assert n - len(answered) <= writers + 1
            yield _document(str(n))

    assert target.write(documents(), writers=writers, batch_documents=1).written == 40


def test_as_many_requests_are_in_flight_as_there_are_writers(target: _Target) -> None:
    together = threading.Barrier(3)

    def met(exchange: Exchange) -> Response:
        together.wait()
        return exchange.forward()

    target.proxy.add(met)
    assert target.write(_documents(*"abcdefghi"), writers=3, batch_documents=1).written == 9


def _writing() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("bulk")]


def test_an_error_where_documents_come_from_is_raised_once_the_requests_have_ended(target: _Target) -> None:
    def documents() -> Iterator[Document | Refusal]:
        yield from _documents("a", "b", "c")
        raise ValueError("the disk is gone")

    with pytest.raises(ValueError, match="the disk is gone"):
        target.write(documents(), writers=3, batch_documents=1)
    assert _writing() == []
    # What was sent is there, and nothing is on its way any more.
    assert set(target.held()) == {"a", "b"} == {item_id for ids in target.sent() for item_id in ids}


def test_an_error_in_one_request_ends_the_others(target: _Target) -> None:
    waiting = threading.Event()
    target.time.meanwhile = lambda pauses: waiting.set()

    def put_off_or_gone(exchange: Exchange) -> Response:
        [(action, _)] = exchange.request.actions
        if action["_id"] == "slow":
            return refuse_items(429, {"slow"})(exchange)
        waiting.wait()
        return refuse_items(404, {"gone"})(exchange)

    target.proxy.add(put_off_or_gone)
    with pytest.raises(LensError, match="404: the proxy says so"):
        target.write(_documents("slow", "gone"), writers=2, batch_documents=1, patience_s=1e12)
    assert _writing() == []


# ---- all of it together ----------------------------------------------------------------------------------------------


def _too_large(exchange: Exchange) -> Response:
    return answer(413)(exchange) if len(exchange.request.actions) > 1 else exchange.forward()


_FAULTS: list[Callable[[], Fault]] = [
    lambda: answer(503),
    lambda: answer(429),
    lambda: drop(applied=True),
    lambda: drop(applied=False),
    lambda: refuse_items(429, lambda action: action["version"] % 2 == 0),
    lambda: refuse_items(503, lambda action: action["_id"].endswith("1")),
    lambda: _too_large,
    lambda: lambda exchange: exchange.forward(),
]
_KINDS = ["good", "good", "good", "bad vector", "refused before"]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    stream=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6), st.sampled_from(_KINDS)), max_size=25),
    faults=st.lists(st.integers(0, len(_FAULTS) - 1), max_size=12),
    writers=st.integers(1, 3),
    batch_documents=st.integers(1, 8),
)
def test_whatever_fails_the_counts_add_up_and_the_newest_versions_remain(
    target: _Target, stream: list[tuple[int, int, str]], faults: list[int], writers: int, batch_documents: int
) -> None:
    run = uuid4().hex
    target.proxy.clear()
    for fault in faults:
        target.proxy.add(_FAULTS[fault](), path=_BULK, times=1)
    documents: list[Document | Refusal] = []
    for item, version, kind in stream:
        item_id = f"{run}-{item}"
        if kind == "refused before":
            documents.append(Refusal(item_id, version, kind))
        else:
            changes = {"vector": _BAD_VECTOR} if kind == "bad vector" else {}
            documents.append(_document(item_id, version, **changes))
    outcome = target.write(documents, writers=writers, batch_documents=batch_documents)
    assert outcome.read == len(stream) == outcome.written + outcome.stale + len(outcome.refused)
    newest: dict[str, int] = {}
    for item, version, kind in stream:
        if kind == "good":
            newest[f"{run}-{item}"] = max(version, newest.get(f"{run}-{item}", 0))
    assert len(outcome.refused) == sum(kind != "good" for _, _, kind in stream)
    held = {item_id: found for item_id, found in target.held().items() if item_id.startswith(run)}
    assert held == {item_id: (version, f"{item_id} {version}") for item_id, version in newest.items()}
