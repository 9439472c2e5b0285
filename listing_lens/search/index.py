"""The search index: versioned Elasticsearch indexes of unit vectors behind one alias.

An index is named `<alias>-<space>-<build>`, and its mapping's `_meta` carries the embedder's card. Documents are written
under the listing's id with `Listing.version` as an external version, so that writes commute: whatever the order of loads,
upserts and replays, the newest version of a listing remains.
A sold or deleted listing stays as a document without a vector, which vector search never returns: its version is newer than
any late replay's, which therefore cannot bring the listing back.

Documents are written through a write alias per index, `<alias>.<space>-<build>`. It is deleted with the index, so that a load
that is still running fails, instead of making Elasticsearch recreate the index without its mapping.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from elastic_transport import ConnectionError as NoConnection
from elastic_transport import TransportError
from elasticsearch import ApiError, Elasticsearch, NotFoundError, OrjsonSerializer, helpers
from numpy.typing import NDArray

from listing_lens.errors import LensError
from listing_lens.lake.records import Listing
from listing_lens.settings import Settings, missing
from models.embedder import EmbedderCard

P = ParamSpec("P")
T = TypeVar("T")

_BULK_DOCUMENTS = 500
# Candidates that each shard considers per result: a trade-off between recall and latency.
_CANDIDATES_PER_RESULT = 10
_LEAST_CANDIDATES = 100
# How long a scan's snapshot is kept while nothing is read from it.
_SCAN_PATIENCE = "10m"


Method = Callable[Concatenate["SearchIndex", P], T]


def _said_plainly(method: Method[P, T]) -> Method[P, T]:
    """Turn the client's errors into LensErrors."""

    @wraps(method)
    def plainly(self: SearchIndex, *args: P.args, **kwargs: P.kwargs) -> T:
        node = next(iter(self.client.transport.node_pool.all()))
        try:
            return method(self, *args, **kwargs)
        except NoConnection as err:
            raise LensError(
                f"Elasticsearch at {node.base_url} cannot be reached: start it with `lens up`, or check LENS_ELASTICSEARCH_URL"
            ) from err
        except ApiError as err:
            raise LensError(
                f"Elasticsearch at {node.base_url} answered {err.status_code} to {method.__name__}: {err.message}; "
                "check LENS_ELASTICSEARCH_API_KEY and the index"
            ) from err
        except TransportError as err:
            raise LensError(f"Elasticsearch at {node.base_url} failed to {method.__name__}: {err.message}") from err

    return plainly


@dataclass(frozen=True)
class Index:
    """An existing versioned index, and the embedder that its vectors come from."""

    name: str
    card: EmbedderCard
    build: str


@dataclass(frozen=True)
class Hit:
    """A search result; `score` is the cosine similarity, from −1 to 1."""

    item_id: str
    score: float
    title: str
    category: tuple[str, ...]
    price: int
    status: str
    image_uri: str


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

    @classmethod
    def connect(cls, settings: Settings) -> SearchIndex:
        """Open a client, and check that the cluster responds.

        Raises:
            LensError: no address is set, or nothing responds there.
        """
        url = settings.elasticsearch_url or missing(
            "elasticsearch_url", "set it, or start the local stack with `lens up`"
        )
        key = settings.elasticsearch_api_key.get_secret_value()
        client = Elasticsearch(
            url,
            api_key=key or None,
            serializer=OrjsonSerializer(),
            request_timeout=60,
            max_retries=3,
            retry_on_status=(429, 502, 503, 504),
        )
        index = cls(client, settings.alias)
        index.check()
        return index

    @_said_plainly
    def check(self) -> None:
        """Raise LensError unless the cluster responds."""
        self.client.cluster.health(timeout="10s")

    # ---- indexes ----------------------------------------------------------------------------------------------------

    @_said_plainly
    def create(self, card: EmbedderCard, build: str) -> Index:
        """Create an empty index for an embedder's vectors; an existing one of the same space and build is kept."""
        name = f"{self.alias}-{card.space}-{build}"
        meta = {"alias": self.alias, "card": card.model_dump(), "space": card.space, "build": build}
        if not self.client.indices.exists(index=name):
            self.client.indices.create(
                index=name,
                aliases={_write_alias(self.alias, name): {}},
                # One replica per shard, if there is a second node for it.
                settings={"number_of_shards": 1, "auto_expand_replicas": "0-1", "refresh_interval": "5s"},
                mappings={"dynamic": "strict", "_meta": meta, "properties": _properties(card.dims)},
            )
        return self.get(name)

    @_said_plainly
    def get(self, name: str) -> Index:
        """An index by name.

        Raises:
            LensError: there is no such index, or it does not name the space of its vectors.
        """
        try:
            mapping = self.client.indices.get_mapping(index=name)[name]["mappings"]
        except (NotFoundError, KeyError):
            raise LensError(f"there is no index {name!r}: list them with `lens index list`") from None
        return _index_of(name, mapping)

    @_said_plainly
    def all(self) -> list[Index]:
        """Every index of this alias, sorted by name: live, being built, kept for rollback."""
        mappings = self.client.indices.get_mapping(index=f"{self.alias}-*")
        return [
            _index_of(name, body["mappings"])
            for name, body in sorted(mappings.items())
            # The name of another alias may begin with this one's.
            if body["mappings"].get("_meta", {}).get("alias") == self.alias
        ]

    @_said_plainly
    def live(self) -> Index | None:
        """The index that the alias points to; None before the first swap.

        Raises:
            LensError: the alias points to several indexes.
        """
        names = self._behind_alias()
        if len(names) > 1:
            raise LensError(
                f"alias {self.alias!r} points to {len(names)} indexes ({', '.join(names)}): rebuild, or swap to one of them"
            )
        return self.get(names[0]) if names else None

    def require_live(self) -> Index:
        """The live index. Raises LensError if there is none."""
        live = self.live()
        if live is None:
            raise LensError(f"alias {self.alias!r} points to no index yet: build one with `lens index rebuild`")
        return live

    @_said_plainly
    def swap(self, name: str) -> str | None:
        """Atomically point the alias to an index, and away from any other. Returns the index it pointed to before."""
        self.get(name)
        others = [other for other in self._behind_alias() if other != name]
        removals = [{"remove": {"index": other, "alias": self.alias}} for other in others]
        self.client.indices.update_aliases(actions=[*removals, {"add": {"index": name, "alias": self.alias}}])
        return others[0] if others else None

    @_said_plainly
    def delete(self, name: str) -> None:
        """Delete an index that is not live. Raises LensError for the live one."""
        live = self.live()
        if live and live.name == name:
            raise LensError(f"index {name!r} is live: swap the alias to another first")
        self.client.indices.delete(index=name, ignore_unavailable=True)

    @_said_plainly
    def finish_load(self, name: str) -> None:
        """Make all writes so far visible to searches."""
        self.client.indices.refresh(index=name)

    @_said_plainly
    def counts(self, name: str) -> dict[str, int]:
        """The number of documents in an index: `searchable` ones have a vector, `removed` ones do not."""
        searchable = self.client.count(index=name, query={"exists": {"field": "vector"}})["count"]
        return {"searchable": searchable, "removed": self.client.count(index=name)["count"] - searchable}

    # ---- documents --------------------------------------------------------------------------------------------------

    @_said_plainly
    def write(
        self, name: str, listings: Sequence[Listing], vectors: Sequence[NDArray[np.float32] | None]
    ) -> Counter[str]:
        """Write listings, newer versions over older ones; the vector of a listing that is not searchable is None.

        Returns:
            How many were `written`, and how many were `superseded` because the index holds a newer version.

        Raises:
            LensError: the index rejected a document for any other reason, or could not be reached.
        """
        into = _write_alias(self.alias, name)
        actions = (_action(into, listing, vector) for listing, vector in zip(listings, vectors, strict=True))
        outcome: Counter[str] = Counter()
        for ok, result in helpers.streaming_bulk(
            self.client,
            actions,
            chunk_size=_BULK_DOCUMENTS,
            raise_on_error=False,
            max_retries=5,
            initial_backoff=1,
            require_alias=True,
        ):
            answer = result["index"]
            if ok:
                outcome["written"] += 1
            elif answer["status"] == 409:
                outcome["superseded"] += 1
            else:
                reason = answer.get("error", {})
                raise LensError(f"index {name} refused item {answer['_id']!r}: {reason.get('reason', reason)}")
        return outcome

    @_said_plainly
    def versions(self, name: str, item_ids: Sequence[str]) -> dict[str, tuple[int, str]]:
        """The version and status of each item in an index; items that are not there are left out."""
        answer = self.client.mget(index=name, ids=list(item_ids), source_includes=["status"])
        return {
            document["_id"]: (document["_version"], document["_source"]["status"])
            for document in answer["docs"]
            if document.get("found")
        }

    @_said_plainly
    def with_vector(self, name: str, item_ids: Sequence[str]) -> set[str]:
        """Those of at most 10,000 items that a search can find, as of the last `finish_load`."""
        answer = self.client.search(
            index=name,
            query={"bool": {"filter": [{"ids": {"values": list(item_ids)}}, {"exists": {"field": "vector"}}]}},
            size=len(item_ids),
            source=False,
        )
        return {hit["_id"] for hit in answer["hits"]["hits"]}

    @_said_plainly
    def search(self, index: Index, vector: NDArray[np.float32], k: int) -> list[Hit]:
        """The k listings nearest to a unit vector (dims,) of the index's space, by decreasing similarity."""
        if vector.shape != (index.card.dims,):
            raise LensError(
                f"index {index.name} holds vectors of {index.card.dims} dimensions, the query has shape {vector.shape}"
            )
        answer = self.client.search(
            index=index.name,
            knn={
                "field": "vector",
                "query_vector": vector.tolist(),
                "k": k,
                "num_candidates": min(10_000, max(_LEAST_CANDIDATES, k * _CANDIDATES_PER_RESULT)),
            },
            size=k,
        )
        return [_hit(hit) for hit in answer["hits"]["hits"]]

    # What a verification looks at.

    @_said_plainly
    def mapping(self, name: str) -> dict[str, Any]:
        """An index's mapping, as Elasticsearch gives it."""
        mapping: dict[str, Any] = self.client.indices.get_mapping(index=name)[name]["mappings"]
        return mapping

    @_said_plainly
    def documents(self, name: str, item_ids: Sequence[str], fields: Sequence[str]) -> dict[str, Held]:
        """The version and some fields of each item in an index; items that are not there are left out."""
        answer = self.client.mget(index=name, ids=list(item_ids), source_includes=list(fields))
        return {
            document["_id"]: Held(document["_version"], document["_source"])
            for document in answer["docs"]
            if document.get("found")
        }

    @_said_plainly
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

    @_said_plainly
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

    @_said_plainly
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

    @_said_plainly
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
        answers = helpers.streaming_bulk(self.client, actions, chunk_size=_BULK_DOCUMENTS, raise_on_error=False)
        return sum(ok for ok, _ in answers)

    def _behind_alias(self) -> list[str]:
        try:
            return sorted(self.client.indices.get_alias(name=self.alias))
        except NotFoundError:
            return []


def _write_alias(alias: str, index_name: str) -> str:
    return f"{alias}.{index_name.removeprefix(f'{alias}-')}"


def _properties(dims: int) -> dict[str, Any]:
    return {
        "item_id": {"type": "keyword"},
        "title": {"type": "text"},
        "category": {"type": "keyword"},
        "price": {"type": "long"},
        "status": {"type": "keyword"},
        "image_uri": {"type": "keyword", "index": False, "doc_values": False},
        "created_at": {"type": "date"},
        "updated_at": {"type": "date"},
        # Vectors have unit length, so the dot product is the cosine, without a division per comparison.
        "vector": {
            "type": "dense_vector",
            "dims": dims,
            "index": True,
            "similarity": "dot_product",
            "index_options": {"type": "hnsw"},
        },
    }


def _action(name: str, listing: Listing, vector: NDArray[np.float32] | None) -> dict[str, Any]:
    document: dict[str, Any] = {
        "item_id": listing.item_id,
        "title": listing.title,
        "category": listing.category,
        "price": listing.price,
        "status": str(listing.status),
        "image_uri": listing.image_uri,
        "created_at": listing.created_at,
        "updated_at": listing.updated_at,
    }
    if vector is not None:
        document["vector"] = vector
    return {
        "_op_type": "index",
        "_index": name,
        "_id": listing.item_id,
        # "gte": writing the same version again is not a conflict, so that a load can be repeated.
        "version_type": "external_gte",
        "version": listing.version,
        "_source": document,
    }


def _index_of(name: str, mapping: dict[str, Any]) -> Index:
    meta = mapping.get("_meta", {})
    if "card" not in meta:
        raise LensError(f"index {name!r} does not name its vector space: it was not made by `lens index rebuild`")
    card = EmbedderCard.model_validate(meta["card"])
    dims = mapping["properties"]["vector"]["dims"]
    if dims != card.dims:
        raise LensError(
            f"index {name!r} holds {dims} dimensions but its space {card.space} has {card.dims}: rebuild it"
        )
    return Index(name, card, meta["build"])


def _hit(hit: dict[str, Any]) -> Hit:
    source = hit["_source"]
    # Elasticsearch scores a dot product as (1 + cosine) / 2.
    return Hit(
        item_id=hit["_id"],
        score=2 * hit["_score"] - 1,
        title=source["title"],
        category=tuple(source["category"]),
        price=source["price"],
        status=source["status"],
        image_uri=source["image_uri"],
    )


def _scanned_of(hit: dict[str, Any]) -> Scanned:
    [milliseconds] = hit["fields"]["updated_at"]
    moment = datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
    return Scanned(hit["_id"], moment, hit["_seq_no"], hit["_primary_term"])
