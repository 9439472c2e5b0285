"""Writing documents to an index: any number of them, in bounded memory, each accounted for.

Every document carries its version, so writing one again changes nothing: requests may be repeated, reordered and sent in
parallel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from threading import Event
from typing import Any, NamedTuple

import orjson
from elasticsearch import ApiError, Elasticsearch

from listing_lens.errors import LensError
from listing_lens.search.client import BUSY, REAL_CLOCK, Clock, attempts, said_plainly
from listing_lens.search.documents import Document, Refusal

_BATCH_BYTES = 5_000_000
_BATCH_DOCUMENTS = 5000
_JSON = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
# All that is read of an answer.
_ANSWER = ["items.*.status", "items.*.error.type", "items.*.error.reason", "items.*.error.caused_by.reason"]
# What to do about an answer that concerns the index, and not the document.
_REMEDIES = {
    401: "check LENS_ELASTICSEARCH_API_KEY",
    403: "remove the block, or check the rights of LENS_ELASTICSEARCH_API_KEY, and write again",
    404: "it was deleted or retired meanwhile; see `lens index list` for those that are there",
}
_CLOSED = "index_closed_exception"


@dataclass(frozen=True)
class Written:
    """What became of documents: `read` of them were given; each was written, stale (the index holds a newer one) or refused.

    Raises:
        LensError: the numbers do not add up.
    """

    read: int = 0
    written: int = 0
    stale: int = 0
    refused: tuple[Refusal, ...] = ()

    def __post_init__(self) -> None:
        if self.read != self.written + self.stale + len(self.refused):
            raise LensError(
                f"of {self.read} documents, {self.written} were written, {self.stale} were stale and {len(self.refused)} "
                "refused, which does not add up: write them again"
            )

    def __add__(self, other: Written) -> Written:
        return Written(
            self.read + other.read,
            self.written + other.written,
            self.stale + other.stale,
            self.refused + other.refused,
        )


def write(
    client: Elasticsearch,
    into: str,
    documents: Iterable[Document | Refusal],
    *,
    writers: int = 1,
    patience_s: float = 600.0,
    batch_bytes: int = _BATCH_BYTES,
    batch_documents: int = _BATCH_DOCUMENTS,
    clock: Clock = REAL_CLOCK,
) -> Written:
    """Write documents through a write alias; newer versions win over older ones, whatever the order.

    Args:
        client: its own patience is what requests get that meet no connection or are refused as a whole; see `connect_client`.
        into: the write alias.
        documents: consumed in this thread, and only as fast as they are written. Refusals are counted and passed on.
        writers: requests in flight.
        patience_s: how long documents are sent again, in seconds, that a busy cluster has put off.
        batch_bytes, batch_documents: the most per request; a single document may be larger.

    Raises:
        LensError: the index is gone or blocked, the cluster stays busy or unreachable, or it answered something unexpected.
            Requests in flight have ended by then, if need be after the client's patience.
    """
    sender = _Sender(client, into, patience_s, clock)
    total, running = Written(), set[Future[Written]]()
    with ThreadPoolExecutor(writers, thread_name_prefix="bulk") as pool:
        try:
            for batch in _batches(documents, batch_bytes, batch_documents):
                if len(running) == writers:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    total = sum((future.result() for future in done), total)
                running.add(pool.submit(sender.send, batch))
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                total = sum((future.result() for future in done), total)
        finally:
            # Of no consequence after success.
            sender.stopped.set()
    return total


class _Line(NamedTuple):
    """A document as its two lines of a request's body."""

    item_id: str
    version: int
    body: bytes


@dataclass
class _Batch:
    """What one request carries, and the refusals met on the way."""

    lines: list[_Line] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    bytes: int = 0

    def __len__(self) -> int:
        return len(self.lines) + len(self.refused)


def _batches(documents: Iterable[Document | Refusal], most_bytes: int, most_documents: int) -> Iterator[_Batch]:
    batch = _Batch()
    for document in documents:
        line = document if isinstance(document, Refusal) else _line(document)
        size = 0 if isinstance(line, Refusal) else len(line.body)
        if len(batch) == most_documents or (batch.lines and batch.bytes + size > most_bytes):
            yield batch
            batch = _Batch()
        if isinstance(line, Refusal):
            batch.refused.append(line)
        else:
            batch.lines.append(line)
            batch.bytes += size
    if len(batch):
        yield batch


def _line(document: Document) -> _Line | Refusal:
    item_id, version = document.item_id, document.version
    # "gte": writing the same version again is not a conflict, so that a request can be repeated.
    action = {"index": {"_id": item_id, "version": version, "version_type": "external_gte"}}
    try:
        body = orjson.dumps(action, option=_JSON) + orjson.dumps(document.source, option=_JSON)
    except orjson.JSONEncodeError as err:
        return Refusal(item_id, version, f"it cannot be written as JSON: {err}")
    return _Line(item_id, version, body)


@dataclass(frozen=True)
class _Sender:
    """Sends batches, in any number of threads; `stopped` ends the repetitions, once the result is of no use any more."""

    client: Elasticsearch
    into: str
    patience_s: float
    clock: Clock
    stopped: Event = field(default_factory=Event)

    def send(self, batch: _Batch) -> Written:
        """Send a batch until every document in it is written, stale or refused."""
        total = Written(read=len(batch.refused), refused=tuple(batch.refused))
        lines = batch.lines
        for _ in attempts(self.patience_s, self.clock):
            outcome, put_off = self._send_once(lines)
            total += outcome
            if not put_off:
                return total
            lines = [line for line, _ in put_off]
            if self.stopped.is_set():
                break
        line, answer = put_off[0]
        raise LensError(
            f"{self.into} put off {len(lines)} documents for {self.patience_s:g} s, such as {line.item_id!r} "
            f"({_said(answer)}): write them again when the cluster is less busy"
        )

    def _send_once(self, lines: list[_Line]) -> tuple[Written, list[tuple[_Line, dict[str, Any]]]]:
        """What became of documents, and those that the cluster was too busy for, with its answer."""
        written = stale = 0
        refused, put_off = [], []
        # Where answers are missing, the outcome does not add up.
        for line, answer in zip(lines, self.bulk(lines), strict=False):
            status = answer["status"]
            if status < 300:
                written += 1
            elif status == 409:
                stale += 1
            elif status in BUSY:
                put_off.append((line, answer))
            else:
                refused.append(self._refusal(line, answer))
        return Written(len(lines) - len(put_off), written, stale, tuple(refused)), put_off

    @said_plainly
    def bulk(self, lines: list[_Line]) -> list[dict[str, Any]]:
        """Each document's answer. A request that is refused as a whole is split, down to the document that is to blame."""
        if not lines:
            return []
        try:
            answer = self.client.bulk(
                index=self.into,
                operations=b"".join([line.body for line in lines]),  # type: ignore[arg-type]
                require_alias=True,
                filter_path=_ANSWER,
            )
        except ApiError as err:
            if err.status_code not in (400, 413):
                raise
            if len(lines) == 1:
                error = err.body.get("error") if isinstance(err.body, dict) else None
                return [{"status": err.status_code, "error": error}]
            middle = len(lines) // 2
            return self.bulk(lines[:middle]) + self.bulk(lines[middle:])
        return [item["index"] for item in answer["items"]]

    def _refusal(self, line: _Line, answer: dict[str, Any]) -> Refusal:
        """The refusal of a document. Raises LensError when the answer is not about the document."""
        status, error = answer["status"], answer.get("error")
        closed = isinstance(error, dict) and error.get("type") == _CLOSED
        if status >= 500 or status in _REMEDIES or closed:
            remedy = (
                "open it, and write again"
                if closed
                else _REMEDIES.get(status, "see the cluster's log, and write again")
            )
            raise LensError(f"{self.into} cannot be written to ({_said(answer)}): {remedy}")
        return Refusal(line.item_id, line.version, _reason(answer))


def _reason(answer: dict[str, Any]) -> str:
    """Why a document was not written: of nested reasons, the inner one says more."""
    error = answer.get("error")
    if not isinstance(error, dict):
        return str(error or f"HTTP {answer['status']}")
    return str(error.get("caused_by", {}).get("reason") or error.get("reason") or error.get("type"))


def _said(answer: dict[str, Any]) -> str:
    return f"{answer['status']}: {_reason(answer)}"
