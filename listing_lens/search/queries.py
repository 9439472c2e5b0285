"""What a search asks an index for, and what it gets: the bodies of requests, and hits made from answers.

Whoever sends them, a job or a service, asks in the same words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listing_lens.errors import LensError
from listing_lens.lake.records import Status
from models.embedder import EmbedderCard

# Candidates that each shard considers per result: a trade-off between recall and latency.
_CANDIDATES_PER_RESULT = 10
_LEAST_CANDIDATES = 100
# Elasticsearch's limit.
MOST_CANDIDATES = 10_000


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
class Filters:
    """Which listings a search may find; those of an empty one are all.

    Attributes:
        category: a path from the coarsest level on; listings at and below it.
        least_price, most_price: both inclusive.
        status: one of the searchable ones.
        without: ids of items to leave out.
    """

    category: tuple[str, ...] = ()
    least_price: int | None = None
    most_price: int | None = None
    status: Status | None = None
    without: tuple[str, ...] = ()

    @property
    def clauses(self) -> list[dict[str, Any]]:
        """As Elasticsearch's filters. A document has its category's levels, but not their order: see `pass_on`."""
        clauses: list[dict[str, Any]] = [{"term": {"category": level}} for level in self.category]
        if self.least_price is not None or self.most_price is not None:
            bounds = {"gte": self.least_price, "lte": self.most_price}
            clauses.append({"range": {"price": {name: price for name, price in bounds.items() if price is not None}}})
        if self.status is not None:
            clauses.append({"term": {"status": str(self.status)}})
        if self.without:
            clauses.append({"bool": {"must_not": {"ids": {"values": list(self.without)}}}})
        return clauses

    def pass_on(self, hits: Iterable[Hit]) -> list[Hit]:
        """Without hits whose category has the wanted levels in other places."""
        return [hit for hit in hits if hit.category[: len(self.category)] == self.category]


NO_FILTERS = Filters()


def nearest(
    card: EmbedderCard, vector: NDArray[np.float32], k: int, filters: Filters = NO_FILTERS, *, candidates: int = 0
) -> dict[str, Any]:
    """The request for the k listings nearest to a unit vector (dims,).

    Args:
        card: of the index that will be asked.
        vector: of its space.
        k: how many.
        filters: applied within the search, so that k are found if there are as many.
        candidates: how many each shard considers; 0 is a number that suits k.

    Raises:
        LensError: the vector has another shape.
    """
    if vector.shape != (card.dims,):
        raise LensError(f"space {card.space} has vectors of {card.dims} dimensions, the query has shape {vector.shape}")
    wanted = candidates or max(_LEAST_CANDIDATES, k * _CANDIDATES_PER_RESULT)
    knn = {
        "field": "vector",
        "query_vector": vector.tolist(),
        "k": k,
        "num_candidates": min(MOST_CANDIDATES, wanted),
    }
    if clauses := filters.clauses:
        knn["filter"] = clauses
    return {"knn": knn, "size": k}


def hits_of(answer: Mapping[str, Any]) -> list[Hit]:
    """The hits of an answer, by decreasing similarity."""
    found: Sequence[Mapping[str, Any]] = answer["hits"]["hits"]
    # Elasticsearch scores a dot product as (1 + cosine) / 2.
    return [hit_of(hit["_id"], hit["_source"], 2 * hit["_score"] - 1) for hit in found]


def hit_of(item_id: str, source: Mapping[str, Any], score: float) -> Hit:
    """A document as a hit."""
    return Hit(
        item_id=item_id,
        score=score,
        title=source["title"],
        category=tuple(source["category"]),
        price=source["price"],
        status=source["status"],
        image_uri=source["image_uri"],
    )
