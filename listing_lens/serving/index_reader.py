"""Reading the index, for many requests at once, each within its time; a cluster that does not answer is not asked on and on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from elastic_transport import ConnectionError as NoConnection
from elastic_transport import TransportError
from elasticsearch import ApiError, AsyncElasticsearch, NotFoundError, OrjsonSerializer
from numpy.typing import NDArray

from listing_lens.errors import LensError
from listing_lens.search.client import BUSY, require_url
from listing_lens.search.index import Index, index_of
from listing_lens.search.queries import NO_FILTERS, Filters, Hit, hit_of, hits_of, nearest
from listing_lens.serving.limits import Breaker, Budget, BusyError, Gate, UnavailableError
from listing_lens.settings import Settings

_CLUSTER = "Elasticsearch"
# Its answer when its queues are full, or its memory.
_TOO_MUCH = 429


class _ClusterError(Exception):
    """The cluster is at fault, and not the request."""


class IndexGoneError(UnavailableError):
    """The index that was asked has been deleted."""


@dataclass(frozen=True)
class Stored:
    """An item as an index holds it; its vector (dims,) float32 is None if it is not searchable."""

    item: Hit
    vector: NDArray[np.float32] | None


@dataclass(frozen=True)
class IndexReader:
    """Searches the indexes of an alias.

    Attributes:
        client: without retries of its own: a buyer waits.
        alias: the readers'.
        gate: how many requests the cluster gets at once.
        breaker: refuses them while it does not answer.
        fair_s: a request that had less time, because it was spent elsewhere, says nothing about the cluster if it is late.
    """

    client: AsyncElasticsearch
    alias: str
    gate: Gate
    breaker: Breaker
    fair_s: float

    @classmethod
    def connect(cls, settings: Settings) -> IndexReader:
        """A reader of the cluster that the settings name. Nothing is asked of it yet.

        Raises:
            LensError: no address is set.
        """
        client = AsyncElasticsearch(
            require_url(settings),
            api_key=settings.elasticsearch_api_key.get_secret_value() or None,
            serializer=OrjsonSerializer(),
            connections_per_node=settings.search_in_flight,
            max_retries=0,
            # Each request has its own time: see `_asking`.
            request_timeout=None,
            # A node that is away is asked by the breaker's probe only.
            dead_node_backoff_factor=0,
        )
        gate = Gate("the index", settings.search_in_flight, settings.search_waiting)
        return cls(client, settings.alias, gate, Breaker(_CLUSTER), settings.search_budget_s / 2)

    async def close(self) -> None:
        await self.client.close()

    @asynccontextmanager
    async def several(self, budget: Budget) -> AsyncIterator[IndexReader]:
        """A reader for requests one after the other, which have waited for their place once: none is made for nothing.

        Raises:
            BusyError: the cluster is busy.
        """
        async with self.gate.enter(budget):
            yield replace(self, gate=Gate(self.gate.what, 1, 0))

    async def live(self, budget: Budget) -> Index | None:
        """The index that the alias points to; None before the first swap.

        Raises:
            LensError: it is not an index of this project, or the alias points to several.
            RefusedError: the cluster does not answer in time.
        """
        async with self._asking(budget) as client:
            try:
                found = (await client.indices.get(index=self.alias)).body
            except NotFoundError:
                return None
        if len(found) != 1:
            raise LensError(f"alias {self.alias!r} points to {len(found)} indexes: see `lens index list`")
        [(name, body)] = found.items()
        return index_of(name, body)

    async def nearest(
        self,
        index: Index,
        vector: NDArray[np.float32],
        k: int,
        budget: Budget,
        filters: Filters = NO_FILTERS,
        *,
        candidates: int = 0,
    ) -> list[Hit]:
        """The k listings nearest to a unit vector (dims,) of the index's space, by decreasing similarity.

        An answer of a part of the index's shards would be a wrong one: it is an error.

        Raises:
            IndexGoneError: the index was deleted.
            LensError: the cluster refuses to answer.
            RefusedError: the cluster is busy, does not answer, or not in time.
        """
        body = nearest(index.card, vector, k, filters, candidates=candidates)
        answer = await self._ask(index, budget, "search", allow_partial_search_results=False, **body)
        if answer["timed_out"]:
            raise UnavailableError(f"{_CLUSTER} was too slow to search all of the index")
        return filters.pass_on(hits_of(answer))

    async def newest(self, index: Index, k: int, budget: Budget, filters: Filters = NO_FILTERS) -> list[Hit]:
        """The k searchable listings that were updated last."""
        searchable = {"exists": {"field": "vector"}}
        answer = await self._ask(
            index,
            budget,
            "search",
            query={"bool": {"filter": [searchable, *filters.clauses]}},
            sort=[{"updated_at": "desc"}],
            size=k,
            track_scores=False,
        )
        return filters.pass_on(hit_of(hit["_id"], hit["_source"], 0.0) for hit in answer["hits"]["hits"])

    async def stored(self, index: Index, item_id: str, budget: Budget) -> Stored | None:
        """An item with its vector, as it was written last; None if the index does not hold it."""
        answer = await self._ask(index, budget, "get", id=item_id, source_exclude_vectors=False)
        if answer is None or not answer["found"]:
            return None
        source = answer["_source"]
        vector = source.get("vector")
        return Stored(hit_of(item_id, source, 1.0), None if vector is None else np.array(vector, np.float32))

    async def _ask(self, index: Index, budget: Budget, method: str, **request: Any) -> Any:
        async with self._asking(budget) as client:
            try:
                return (await getattr(client, method)(index=index.name, **request)).body
            except NotFoundError as err:
                if err.body.get("found") is False:
                    return None
                raise IndexGoneError(f"index {index.name} was deleted") from None

    @asynccontextmanager
    async def _asking(self, budget: Budget) -> AsyncIterator[AsyncElasticsearch]:
        """A client for one request, whose faults are told apart."""
        async with self.gate.enter(budget):
            left = max(0.0, budget.left)
            try:
                with self.breaker.watch(_ClusterError):
                    try:
                        # The client's own timeout would take a new client for each request.
                        async with asyncio.timeout(left):
                            yield self.client
                    except TimeoutError as err:
                        if left < self.fair_s:
                            raise BusyError(f"{_CLUSTER} had too little of the request's time left") from err
                        raise _ClusterError from err
                    except NoConnection as err:
                        raise _ClusterError from err
                    except ApiError as err:
                        if err.status_code == _TOO_MUCH:
                            raise BusyError(f"{_CLUSTER} has more to do than it can") from err
                        if err.status_code in BUSY:
                            raise _ClusterError from err
                        raise LensError(
                            f"{_CLUSTER} answered {err.status_code}: {err.message}; "
                            "check LENS_ELASTICSEARCH_API_KEY and the index"
                        ) from err
            except _ClusterError as err:
                raise _refusal(err.__cause__) from err.__cause__


def _refusal(cause: BaseException | None) -> UnavailableError:
    if isinstance(cause, TimeoutError):
        return UnavailableError(f"{_CLUSTER} did not answer in the request's time")
    if isinstance(cause, TransportError):
        return UnavailableError(f"{_CLUSTER} cannot be reached")
    return UnavailableError(f"{_CLUSTER} is restarting")
