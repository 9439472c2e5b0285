"""The search index: versioned Elasticsearch indexes of unit vectors behind one alias.

An index is named `<alias>-<space>-<build>`, and its mapping's `_meta` carries the embedder's card. Documents are written
under the listing's id with `Listing.version` as an external version, so that writes commute: whatever the order of loads,
upserts and replays, the newest version of a listing remains.
A sold or deleted listing stays as a document without a vector, which vector search never returns: its version is newer than
any late replay's, which therefore cannot bring the listing back.

Documents are written through a write alias per index, `<alias>.<space>-<build>`. It is deleted with the index, so that a load
that is still running fails, instead of making Elasticsearch recreate the index without its mapping.

Every change of the alias is a compare-and-swap. The index `<alias>.builds` carries an alias `<alias>.epoch-<n>`; the request
that moves the readers' alias also removes epoch n, which must exist, and adds epoch n + 1. Elasticsearch carries out all
actions of a request or none, so a swap that was planned before another one is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from elasticsearch import BadRequestError, Elasticsearch, NotFoundError, helpers
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from listing_lens.errors import LensError
from listing_lens.lake.records import Listing
from listing_lens.search import bulk
from listing_lens.search.client import connect_client, said_plainly
from listing_lens.search.documents import Document, Refusal, document_of, properties
from listing_lens.search.queries import Hit, hits_of, nearest
from listing_lens.settings import Settings
from models.embedder import EmbedderCard

# For how many seconds a job repeats its requests while the cluster does not answer.
PATIENCE_S = 300.0
_JSON = {"accept": "application/json"}
# How long a scan's snapshot is kept while nothing is read from it.
_SCAN_PATIENCE = "10m"


class Layout(BaseModel):
    """How a new index is laid out: the settings `index_…`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shards: int = 1
    replicas: str = "0-1"
    options: dict[str, Any] = {"type": "hnsw"}
    refresh: str = "1s"

    @property
    def serving(self) -> dict[str, Any]:
        """The settings of an index that is searched; `filling` has those of one that is being filled."""
        if "-" in self.replicas:
            return {"refresh_interval": self.refresh, "auto_expand_replicas": self.replicas}
        return {
            "refresh_interval": self.refresh,
            "auto_expand_replicas": "false",
            "number_of_replicas": int(self.replicas),
        }

    @property
    def filling(self) -> dict[str, Any]:
        return {
            "number_of_shards": self.shards,
            "number_of_replicas": 0,
            "auto_expand_replicas": "false",
            "refresh_interval": "-1",
        }


@dataclass(frozen=True)
class Index:
    """An existing versioned index, and the embedder that its vectors come from."""

    name: str
    card: EmbedderCard
    build: str
    # An index that is deleted and made again has another one.
    uuid: str
    created_at: datetime


@dataclass(frozen=True)
class Held:
    """A document as an index holds it: its version, and those of its fields that were asked for."""

    version: int
    fields: dict[str, Any]


@dataclass(frozen=True)
class Scanned:
    """A document that a scan came upon, and what tells whether it has changed since."""

    item_id: str
    updated_at: datetime
    seq_no: int
    primary_term: int


@dataclass(frozen=True)
class SearchIndex:
    """The indexes behind one alias, on one cluster."""

    client: Elasticsearch
    alias: str
    layout: Layout = field(default_factory=Layout)
    # Bulk requests in flight.
    writers: int = 1

    @classmethod
    def connect(cls, settings: Settings, *, patience_s: float = 0.0) -> SearchIndex:
        """Open a client, and check that the cluster responds.

        Args:
            settings: name the cluster and the alias, and lay out new indexes.
            patience_s: for how many seconds a request is repeated while the cluster does not answer, or is overloaded.

        Raises:
            LensError: no address is set, or nothing responds there.
        """
        layout = Layout(
            shards=settings.index_shards,
            replicas=settings.index_replicas,
            options=settings.index_options,
            refresh=settings.index_refresh,
        )
        client = connect_client(settings, patience_s=patience_s)
        index = cls(client, settings.alias, layout, settings.index_writers)
        index.check()
        return index

    @said_plainly
    def check(self) -> None:
        """Raise LensError unless the cluster responds."""
        self.client.cluster.health(timeout="10s")

    # ---- indexes ----------------------------------------------------------------------------------------------------

    @said_plainly
    def create(self, card: EmbedderCard, build: str) -> Index:
        """Create an empty index for an embedder's vectors, to be filled; an existing one of the same space and build is kept."""
        name = f"{self.alias}-{card.space}-{build}"
        meta = {"alias": self.alias, "card": card.model_dump(), "space": card.space, "build": build}
        if not self.exists(name):
            self._create(
                name,
                aliases={_write_alias(self.alias, name): {}},
                settings=self.layout.filling,
                mappings={
                    "dynamic": "strict",
                    "_meta": meta,
                    "properties": properties(card.dims, self.layout.options),
                },
            )
        return self.get(name)

    @said_plainly
    def exists(self, name: str) -> bool:
        return bool(self.client.indices.exists(index=name))

    @said_plainly
    def get(self, name: str) -> Index:
        """An index by name.

        Raises:
            LensError: there is no such index, or it does not name the space of its vectors.
        """
        try:
            body = self.client.indices.get(index=name)[name]
        except (NotFoundError, KeyError):
            raise LensError(f"there is no index {name!r}: list them with `lens index list`") from None
        return index_of(name, body)

    @said_plainly
    def all(self) -> list[Index]:
        """Every index of this alias, sorted by name: live, being built, kept for rollback."""
        found = self.client.indices.get(index=f"{self.alias}-*")
        return [
            index_of(name, body)
            for name, body in sorted(found.items())
            # The name of another alias may begin with this one's.
            if body["mappings"].get("_meta", {}).get("alias") == self.alias
        ]

    @said_plainly
    def live(self) -> Index | None:
        """The index that the alias points to; None before the first swap.

        Raises:
            LensError: the alias points to several indexes.
        """
        names = self.behind_alias()
        if len(names) > 1:
            raise LensError(
                f"alias {self.alias!r} points to {len(names)} indexes ({', '.join(names)}): rebuild, or roll back to one of them"
            )
        return self.get(names[0]) if names else None

    def require_live(self) -> Index:
        """The live index. Raises LensError if there is none."""
        live = self.live()
        if live is None:
            raise LensError(f"alias {self.alias!r} points to no index yet: build one with `lens index rebuild`")
        return live

    @said_plainly
    def behind_alias(self) -> list[str]:
        """The names of the indexes that the alias points to: one, none before the first swap, several if somebody moved it."""
        try:
            return sorted(self.client.indices.get_alias(name=self.alias))
        except NotFoundError:
            return []

    @said_plainly
    def epoch(self) -> int:
        """How often the alias was swapped. A swap is refused if this has changed since it was planned."""
        self.ensure_bookkeeping()
        aliases = self.client.indices.get_alias(index=self.bookkeeping)[self.bookkeeping]["aliases"]
        return max(int(name.rsplit("-", 1)[1]) for name in aliases)

    def ensure_bookkeeping(self) -> None:
        """Create the index of the build records, with the first epoch, unless it exists."""
        mappings = {"dynamic": False, "properties": {"kind": {"type": "keyword"}, "began": {"type": "date"}}}
        self.ensure(self.bookkeeping, mappings, {f"{self.alias}.epoch-0": {}})

    @property
    def bookkeeping(self) -> str:
        """The index of the build records (`listing_lens.search.builds`), which carries the epoch."""
        return f"{self.alias}.builds"

    @said_plainly
    def swap(self, name: str, *, epoch: int | None = None) -> str | None:
        """Atomically point the alias to an index, and away from any other. Returns the index it pointed to before.

        Args:
            name: the index.
            epoch: what `epoch()` was when this swap was planned; None is now.

        Raises:
            LensError: there is no such index, or the alias was moved since.
        """
        self.get(name)
        planned = self.epoch() if epoch is None else epoch
        others = [other for other in self.behind_alias() if other != name]
        actions = [
            *(_removal(other, self.alias) for other in others),
            {"add": {"index": name, "alias": self.alias}},
            _removal(self.bookkeeping, f"{self.alias}.epoch-{planned}"),
            {"add": {"index": self.bookkeeping, "alias": f"{self.alias}.epoch-{planned + 1}"}},
        ]
        try:
            self.client.indices.update_aliases(actions=actions)
        except NotFoundError:
            # A request that was repeated because its answer was lost finds that it has been carried out.
            if self.behind_alias() != [name] or self.epoch() != planned + 1:
                raise LensError(
                    f"alias {self.alias!r} was moved since the swap to {name} was planned, and points to "
                    f"{', '.join(self.behind_alias())}: look at `lens index list`, and begin again"
                ) from None
        return others[0] if others else None

    @said_plainly
    def delete(self, name: str) -> None:
        """Delete an index that is not live. Raises LensError for the live one."""
        if name in self.behind_alias():
            raise LensError(f"index {name!r} is live: swap the alias to another first")
        self.client.indices.delete(index=name, ignore_unavailable=True)

    @said_plainly
    def finish_load(self, name: str) -> None:
        """Give an index the settings of one that is searched, and make all writes so far visible."""
        self.client.indices.put_settings(index=name, settings=self.layout.serving)
        self.client.indices.refresh(index=name)

    @said_plainly
    def refresh(self, name: str) -> None:
        """Make all writes so far visible to searches."""
        self.client.indices.refresh(index=name)

    @said_plainly
    def start_merge(self, name: str, segments: int) -> str:
        """Start to merge each shard's segments to so many. Returns the task, for `is_merged`."""
        answer = self.client.indices.forcemerge(index=name, max_num_segments=segments, wait_for_completion=False)
        return str(answer["task"])

    @said_plainly
    def is_merged(self, task: str) -> bool:
        """Whether a merge has ended; also when the node that ran it has restarted, and it is to be started again."""
        try:
            return bool(self.client.perform_request("GET", f"/_tasks/{task}", headers=_JSON).body["completed"])
        except NotFoundError:
            return True

    @said_plainly
    def counts(self, name: str) -> dict[str, int]:
        """The number of documents in an index: `searchable` ones have a vector, `removed` ones do not."""
        searchable = self.client.count(index=name, query={"exists": {"field": "vector"}})["count"]
        return {"searchable": searchable, "removed": self.client.count(index=name)["count"] - searchable}

    @said_plainly
    def ensure(self, name: str, mappings: dict[str, Any], aliases: dict[str, Any] | None = None) -> None:
        """Create an index for records, unless it exists."""
        if not self.exists(name):
            settings = {"number_of_shards": 1, "auto_expand_replicas": "0-1"}
            self._create(name, settings=settings, mappings=mappings, aliases=aliases or {})

    def _create(self, name: str, **body: Any) -> None:
        try:
            self.client.indices.create(index=name, **body)
        except BadRequestError as err:
            # Another process came first, or the answer to an earlier try was lost.
            if err.error != "resource_already_exists_exception":
                raise

    # ---- documents --------------------------------------------------------------------------------------------------

    def write(
        self, name: str, listings: Sequence[Listing], vectors: Sequence[NDArray[np.float32] | None]
    ) -> bulk.Written:
        """Write listings, newer versions over older ones; the vector of a listing that is not searchable is None.

        Raises:
            LensError: the index is gone or read-only, or could not be reached.
        """
        pairs = zip(listings, vectors, strict=True)
        return self.write_documents(name, (document_of(listing, vector) for listing, vector in pairs))

    @said_plainly
    def write_documents(self, name: str, documents: Iterable[Document | Refusal]) -> bulk.Written:
        """Write documents, newer versions over older ones. Raises LensError as `write` does."""
        return bulk.write(self.client, _write_alias(self.alias, name), documents, writers=self.writers)

    @said_plainly
    def versions(self, name: str, item_ids: Sequence[str]) -> dict[str, tuple[int, str]]:
        """The version and status of each item in an index; items that are not there are left out."""
        answer = self.client.mget(index=name, ids=list(item_ids), source_includes=["status"])
        return {
            document["_id"]: (document["_version"], document["_source"]["status"]) for document in _found(name, answer)
        }

    @said_plainly
    def with_vector(self, name: str, item_ids: Sequence[str]) -> set[str]:
        """Those of at most 10,000 items that a search can find, as of the last `finish_load`."""
        answer = self.client.search(
            index=name,
            query={"bool": {"filter": [{"ids": {"values": list(item_ids)}}, {"exists": {"field": "vector"}}]}},
            size=len(item_ids),
            source=False,
        )
        return {hit["_id"] for hit in answer["hits"]["hits"]}

    @said_plainly
    def search(self, index: Index, vector: NDArray[np.float32], k: int) -> list[Hit]:
        """The k listings nearest to a unit vector (dims,) of the index's space, by decreasing similarity."""
        return hits_of(self.client.search(index=index.name, **nearest(index.card, vector, k)).body)

    # What a verification looks at.

    @said_plainly
    def mapping(self, name: str) -> dict[str, Any]:
        """An index's mapping, as Elasticsearch gives it."""
        mapping: dict[str, Any] = self.client.indices.get_mapping(index=name)[name]["mappings"]
        return mapping

    @said_plainly
    def documents(self, name: str, item_ids: Sequence[str], fields: Sequence[str]) -> dict[str, Held]:
        """The version and some fields of each item in an index; items that are not there are left out."""
        answer = self.client.mget(index=name, ids=list(item_ids), source_includes=list(fields))
        return {document["_id"]: Held(document["_version"], document["_source"]) for document in _found(name, answer)}

    @said_plainly
    def vectors(self, name: str, item_ids: Sequence[str]) -> dict[str, tuple[int, NDArray[np.float32] | None]]:
        """The version and the vector (dims,) of at most 10,000 items, as of the last `finish_load`.

        Items that are not there are left out; the vector is None of those that no search can find.
        """
        answer = self.client.search(
            index=name,
            query={"ids": {"values": list(item_ids)}},
            size=max(1, len(item_ids)),
            version=True,
            source_includes=["vector"],
            source_exclude_vectors=False,
        )
        found = ((hit["_id"], hit["_version"], hit["_source"].get("vector")) for hit in answer["hits"]["hits"])
        return {
            item_id: (version, None if vector is None else np.array(vector, np.float32))
            for item_id, version, vector in found
        }

    @said_plainly
    def scan_searchable(self, name: str, *, batch_size: int = 5000) -> Iterator[list[Scanned]]:
        """All documents that a search can find, as of this call, in batches; they are read as the caller goes on."""
        return self._scanned(self.client.open_point_in_time(index=name, keep_alive=_SCAN_PATIENCE)["id"], batch_size)

    def _scanned(self, snapshot: str, batch_size: int) -> Iterator[list[Scanned]]:
        after: list[Any] | None = None
        try:
            while hits := self._scan_on(snapshot, after, batch_size):
                yield [_scanned_of(hit) for hit in hits]
                after = hits[-1]["sort"]
        finally:
            self.client.close_point_in_time(id=snapshot)

    @said_plainly
    def _scan_on(self, snapshot: str, after: list[Any] | None, size: int) -> list[dict[str, Any]]:
        answer = self.client.search(
            pit={"id": snapshot, "keep_alive": _SCAN_PATIENCE},
            query={"bool": {"filter": {"exists": {"field": "vector"}}}},
            sort=["_shard_doc"],
            search_after=after,
            size=size,
            source=False,
            docvalue_fields=[{"field": "updated_at", "format": "epoch_millis"}],
            seq_no_primary_term=True,
            track_total_hits=False,
        )
        hits: list[dict[str, Any]] = answer["hits"]["hits"]
        return hits

    @said_plainly
    def remove(self, name: str, documents: Sequence[Scanned]) -> int:
        """Delete documents, unless they have changed since they were scanned. Returns how many were deleted."""
        actions = (
            {
                "_op_type": "delete",
                "_index": name,
                "_id": document.item_id,
                "if_seq_no": document.seq_no,
                "if_primary_term": document.primary_term,
            }
            for document in documents
        )
        answers = helpers.streaming_bulk(self.client, actions, raise_on_error=False)
        return sum(ok for ok, _ in answers)


def _found(name: str, answer: Any) -> Iterator[dict[str, Any]]:
    """The documents that an index holds, of those it was asked for. Raises LensError when it could not tell."""
    for document in answer["docs"]:
        if "error" in document:
            # A shard that has just restarted must not look as if it held nothing.
            raise LensError(
                f"index {name!r} cannot say whether it holds {document['_id']!r}: {document['error'].get('reason')}; "
                "ask again when all of its shards are there"
            )
        if document["found"]:
            yield document


def _write_alias(alias: str, index_name: str) -> str:
    return f"{alias}.{index_name.removeprefix(f'{alias}-')}"


def _removal(index: str, alias: str) -> dict[str, Any]:
    return {"remove": {"index": index, "alias": alias, "must_exist": True}}


def index_of(name: str, body: Mapping[str, Any]) -> Index:
    """An index, from what Elasticsearch says of it. Raises LensError when it names no vector space, or another one."""
    mapping, settings = body["mappings"], body["settings"]["index"]
    meta = mapping.get("_meta", {})
    if "card" not in meta:
        raise LensError(f"index {name!r} does not name its vector space: it was not made by `lens index rebuild`")
    card = EmbedderCard.model_validate(meta["card"])
    dims = mapping["properties"]["vector"]["dims"]
    if dims != card.dims:
        raise LensError(
            f"index {name!r} holds {dims} dimensions but its space {card.space} has {card.dims}: rebuild it"
        )
    created_at = datetime.fromtimestamp(int(settings["creation_date"]) / 1000, UTC)
    return Index(name, card, meta["build"], settings["uuid"], created_at)


def _scanned_of(hit: dict[str, Any]) -> Scanned:
    [milliseconds] = hit["fields"]["updated_at"]
    moment = datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
    return Scanned(hit["_id"], moment, hit["_seq_no"], hit["_primary_term"])
