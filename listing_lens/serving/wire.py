"""What the service answers, as its OpenAPI says it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from listing_lens.lake.records import MAX_ID_BYTES
from listing_lens.search.queries import Hit
from listing_lens.serving.similar import Ranked

SEARCH_ID = "^[0-9a-f]{32}$"


class Found(BaseModel):
    """A listing that was found."""

    item_id: str
    score: float = Field(description="What it was ranked by, 1 at most.")
    title: str
    category: list[str] = Field(description="From coarse to fine.")
    price: int
    status: str
    photo: str = Field(description="Where its photo can be had, relative to this service.")

    @classmethod
    def of(cls, hit: Hit, score: float) -> Found:
        return cls(**_shown(hit, score))


class Explanation(BaseModel):
    """Why a similar item is where it is."""

    visual_rank: int = Field(description="Its place among the candidates by visual similarity alone, from 1.")
    visual_similarity: float = Field(description="The cosine of the two photos' vectors.")
    category_similarity: float | None = Field(
        description="The share of the category path that it has in common with the item; null if that is switched off."
    )
    price_ratio: float | None = Field(description="Its price by the item's; null if the item has none.")
    formula: str = Field(description="How the score came about.")


class FoundSimilar(Found):
    """A listing that is similar to an item."""

    why: Explanation | None = Field(default=None, description="Only if `explain` was asked for.")

    @classmethod
    def of_ranked(cls, ranked: Ranked, why: Explanation | None) -> FoundSimilar:
        return cls(**_shown(ranked.hit, ranked.score), why=why)


Notice = Literal["nothing_found", "fewer_than_asked"]


class Searched(BaseModel):
    """What every search says of itself."""

    search_id: str | None = Field(description="What events refer to it by; null if nothing of it is kept.")
    index: str = Field(description="The index that was searched.")
    space: str = Field(description="The vector space of the index and of the query.")
    notices: list[Notice] = Field(description="What is unusual about the results.")
    took_ms: dict[str, float] = Field(description="Milliseconds by stage.")


class SearchAnswer(Searched):
    """The listings whose photos are most like the query's, by decreasing similarity."""

    results: list[Found]


class NewestAnswer(BaseModel):
    """The listings that were updated last."""

    index: str
    results: list[Found]


class SimilarAnswer(Searched):
    """Items that are similar to one."""

    item: Found
    results: list[FoundSimilar]


class Event(BaseModel):
    """What a buyer did with a result of a search."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["impression", "tap", "view", "purchase"] = Field(
        description="It was on the screen, was tapped, its page was looked at, or it was bought."
    )
    search_id: str = Field(pattern=SEARCH_ID, description="The search that it was a result of.")
    item_id: str = Field(min_length=1, max_length=MAX_ID_BYTES)


class Events(BaseModel):
    """Events, in the order in which they happened."""

    model_config = ConfigDict(extra="forbid")

    events: list[Event] = Field(min_length=1, max_length=500)


class Stored(BaseModel):
    """How many events were stored, for good."""

    stored: int


class StoredPhoto(BaseModel):
    """A listing's photo that is kept."""

    image_uri: str


class Taken(BaseModel):
    """A listing that was taken."""

    item_id: str
    version: str = Field(description="A number, of which the largest of an item counts; longer than a float is exact.")
    updated_at: datetime


class Health(BaseModel):
    """How the service is."""

    state: Literal["ready", "nothing_to_search", "unavailable"] = Field(
        description="Whether it can answer; if not, whether there is no index yet, or something is wrong."
    )
    index: str | None
    space: str | None
    problems: list[str] = Field(description="What is wrong; also what does not keep it from answering.")


def notices_of(asked: int, found: int) -> list[Notice]:
    if not found:
        return ["nothing_found"]
    return ["fewer_than_asked"] if found < asked else []


def _shown(hit: Hit, score: float) -> dict[str, Any]:
    return {
        "item_id": hit.item_id,
        "score": score,
        "title": hit.title,
        "category": list(hit.category),
        "price": hit.price,
        "status": hit.status,
        "photo": photo_path(hit.item_id),
    }


def photo_path(item_id: str) -> str:
    return f"/items/{quote(item_id, safe='')}/photo"
