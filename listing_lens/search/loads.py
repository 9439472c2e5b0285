"""The ledger of loads: what went into each index, and what an interrupted load has still to do.

A load brings the rows that changed since a version of the encoder's table into an index, in parts that workers record as they
finish them; one that was interrupted goes on with the other parts. The ledger is the index `<alias>.loads`, beside the
indexes that it describes. Its lines name an index by its UUID: one that is deleted and made again begins afresh.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any

from elasticsearch import helpers
from pydantic import BaseModel, ConfigDict

from listing_lens.errors import LensError
from listing_lens.lake.embeddings import Embeddings
from listing_lens.search.bulk import Written
from listing_lens.search.client import said_plainly
from listing_lens.search.documents import Refusal
from listing_lens.search.index import Index, SearchIndex

_COUNTS = ("read", "written", "stale", "refused", "forgotten")
# A page of a search.
_PAGE = 10_000
_MAPPINGS = {
    "dynamic": False,
    "properties": {
        **{name: {"type": "keyword"} for name in ("kind", "uuid", "load", "item_id")},
        **{name: {"type": "long"} for name in (*_COUNTS, "fragment", "offset", "since", "version")},
        "finished": {"type": "boolean"},
    },
}


class Load(BaseModel):
    """A load of the rows that changed up to a version of the encoder's table.

    When it is finished, `read` = `written` + `stale` + `refused` + `forgotten`, which is `expected`.
    """

    model_config = ConfigDict(frozen=True)

    # The rows that changed after version `since` (0: all rows), up to `version`; and how many they are.
    since: int
    version: int
    expected: int
    # Rows of items that were sold or deleted before this are not written.
    forgets_before: datetime | None
    started_at: datetime
    finished_at: datetime | None = None
    counts: dict[str, int] = {}

    @property
    def name(self) -> str:
        return f"{self.since}-{self.version}"


@dataclass(frozen=True, order=True)
class Part:
    """Rows of a fragment of the table that are loaded together: from `offset` on, `rows` of them; None is all."""

    fragment: int
    offset: int = 0
    rows: int | None = None


class Progress(BaseModel):
    """How far the first load of an index has come, in rows; and how many documents the index has refused so far."""

    model_config = ConfigDict(frozen=True)

    expected: int
    done: int
    refused: int
    started_at: datetime
    finished_at: datetime | None

    def rate(self, now: datetime) -> float:
        """Rows per second."""
        return self.done / max(((self.finished_at or now) - self.started_at).total_seconds(), 1e-3)

    def remaining(self, now: datetime) -> timedelta | None:
        """How long it will take from now on; None before anything is done."""
        if not self.done:
            return None
        return timedelta(seconds=max(self.expected - self.done, 0) / self.rate(now))


@dataclass(frozen=True)
class Loads:
    """The ledger of one index."""

    search_index: SearchIndex
    index: Index

    @property
    def client(self) -> Any:
        return self.search_index.client

    # ---- loads ------------------------------------------------------------------------------------------------------

    def all(self) -> list[Load]:
        """Every load, in the order of the versions that they start from."""
        found = [Load.model_validate(line["load_record"]) for line in self._lines("load")]
        return sorted(found, key=lambda load: (load.since, load.version))

    def reached(self) -> int:
        """The version of the encoder's table up to which the index has all changes; 0 if nothing has been loaded yet."""
        reached = 0
        for load in self.all():
            # A load that starts beyond the version reached so far leaves a gap, and does not count.
            if load.finished_at and load.since <= reached:
                reached = max(reached, load.version)
        return reached

    def is_behind(self, embeddings: Embeddings) -> bool:
        """Whether the encoder's table has changed since the index was loaded.

        Raises:
            LensError: there is no table, or it is an earlier one than was loaded.
        """
        reached, latest = self.reached(), embeddings.require()
        if reached > latest:
            raise LensError(
                f"index {self.index.name} was loaded up to version {reached} of {embeddings.items.path}, which is at version "
                f"{latest}: the lake was restored to an earlier time; rebuild the index, which then holds what the lake does"
            )
        return reached < latest

    def unfinished(self) -> Load | None:
        """The latest load that was begun from the version reached so far, but not finished."""
        reached = self.reached()
        open_ones = [load for load in self.all() if load.finished_at is None and load.since == reached]
        return open_ones[-1] if open_ones else None

    def progress(self) -> Progress | None:
        """How far the first load has come; None before it begins."""
        first = [load for load in self.all() if not load.since]
        if not first:
            return None
        load = first[-1]
        done = load.counts["read"] if load.finished_at else self.counts(load)["read"]
        return Progress(
            expected=load.expected,
            done=done,
            refused=len(self.refusals()),
            started_at=load.started_at,
            finished_at=load.finished_at,
        )

    @said_plainly
    def begin(self, load: Load) -> None:
        """Record that a load has begun."""
        self._write_load(load)

    @said_plainly
    def finish(self, load: Load, now: datetime) -> Load:
        """Record that a load is finished; one that another process has finished is left as it is.

        Raises:
            LensError: the parts do not account for all of its rows. They are forgotten, so that the load begins afresh.
        """
        counts = self.counts(load)
        accounted = sum(counts[name] for name in _COUNTS[1:])
        if counts["read"] != load.expected or counts["read"] != accounted:
            # Another process that carried out the same load removes its parts at the end.
            ended = [one for one in self.all() if one.name == load.name and one.finished_at]
            self.remove_parts(load)
            if ended:
                return ended[0]
            raise LensError(
                f"index {self.index.name}: {load.expected} rows were to go in, but the outcome is {counts}: load it again"
            )
        finished = load.model_copy(update={"finished_at": now, "counts": counts})
        self._write_load(finished)
        self.remove_parts(finished)
        return finished

    def remove_parts(self, load: Load) -> None:
        """Remove the parts of a load: they are summed up in its line, or all of them are to be done again."""
        self._delete({"term": {"kind": "part"}}, {"term": {"load": load.name}})

    # ---- parts ------------------------------------------------------------------------------------------------------

    @said_plainly
    def record(self, load: Load, part: Part, written: Written, forgotten: int) -> None:
        """Record that a part is in the index, and what the index refused of it."""
        counts = {"written": written.written, "stale": written.stale, "refused": len(written.refused)}
        if written.refused:
            self._write_refusals(written.refused)
        line = {"load": load.name, **asdict(part), "read": written.read + forgotten, **counts, "forgotten": forgotten}
        self._put("part", f"{load.name}/{part.fragment}-{part.offset}", line)

    def parts_done(self, load: Load) -> set[Part]:
        """The parts of a load that are in the index."""
        lines = self._lines("part", {"term": {"load": load.name}})
        return {Part(line["fragment"], line["offset"], line["rows"]) for line in lines}

    @said_plainly
    def counts(self, load: Load) -> dict[str, int]:
        """The rows of a load so far: `read`, and of these `written`, `stale`, `refused` and `forgotten`."""
        self._ensure()
        self.client.indices.refresh(index=self._name)
        answer = self.client.search(
            index=self._name,
            size=0,
            query={"bool": {"filter": [*self._mine("part"), {"term": {"load": load.name}}]}},
            aggs={name: {"sum": {"field": name}} for name in _COUNTS},
        )
        return {name: int(answer["aggregations"][name]["value"]) for name in _COUNTS}

    # ---- refusals ---------------------------------------------------------------------------------------------------

    def refusals(self, item_id: str | None = None) -> list[Refusal]:
        """The documents that the index refused, the last one of each item; or those of one item."""
        narrowed = [{"term": {"item_id": item_id}}] if item_id else []
        return [
            Refusal(line["item_id"], line["item_version"], line["reason"]) for line in self._lines("refusal", *narrowed)
        ]

    def _write_refusals(self, refusals: Iterable[Refusal]) -> None:
        for refusal in refusals:
            key = blake2b(refusal.item_id.encode(), digest_size=16).hexdigest()
            line = {"item_id": refusal.item_id, "item_version": refusal.version, "reason": refusal.reason}
            self._put("refusal", key, line)

    # ---- lines ------------------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Remove all lines of the index, which is gone."""
        self._delete()

    @said_plainly
    def _lines(self, kind: str, *narrowed: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [hit["_source"] for hit in self._hits([*self._mine(kind), *narrowed])]

    def _hits(self, filters: list[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        self._ensure()
        self.client.indices.refresh(index=self._name)
        yield from helpers.scan(
            self.client, index=self._name, query={"query": {"bool": {"filter": filters}}}, size=_PAGE
        )

    @said_plainly
    def _delete(self, *narrowed: Mapping[str, Any]) -> None:
        gone = [hit["_id"] for hit in self._hits([{"term": {"uuid": self.index.uuid}}, *narrowed])]
        actions = ({"_op_type": "delete", "_index": self._name, "_id": key} for key in gone)
        helpers.bulk(self.client, actions, raise_on_error=False)

    def _write_load(self, load: Load) -> None:
        self._ensure()
        line = {"since": load.since, "version": load.version, "load_record": load.model_dump(mode="json")}
        self._put("load", load.name, line)

    def _put(self, kind: str, key: str, line: dict[str, Any]) -> None:
        document = {"kind": kind, "uuid": self.index.uuid, "index": self.index.name, **line}
        self.client.index(index=self._name, id=f"{self.index.uuid}/{kind}/{key}", document=document)

    def _mine(self, kind: str) -> list[Mapping[str, Any]]:
        return [{"term": {"uuid": self.index.uuid}}, {"term": {"kind": kind}}]

    def _ensure(self) -> None:
        self.search_index.ensure(self._name, _MAPPINGS)

    @property
    def _name(self) -> str:
        return f"{self.search_index.alias}.loads"
