"""Visually similar items: which candidates are considered, and how they are ranked.

The stages follow Mercari's "visually similar items": neighbours by their stored vectors, without those whose price is quite
another, re-ranked so that items of a similar category come first. Each stage can be switched off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from listing_lens.search.queries import Filters, Hit


@dataclass(frozen=True)
class Ranking:
    """How candidates are chosen and ranked: the settings `similar_…`.

    Attributes:
        price_factor: candidates may cost up to this many times more or less than the item; 0 lets all pass.
        category_weight: the share of the category in a rank's score, from 0 (not considered) to 1 (nothing else is).
        pool: candidates per result that are ranked.
    """

    price_factor: float
    category_weight: float
    pool: int


@dataclass(frozen=True)
class Ranked:
    """A candidate where it was ranked, and why.

    Attributes:
        hit: as the search found it.
        visual_rank: its place by visual similarity alone, from 1.
        category_similarity: from 0 to 1; None if the category was not considered.
        score: what it was ranked by.
    """

    hit: Hit
    visual_rank: int
    category_similarity: float | None
    score: float


def candidates_of(item: Hit, ranking: Ranking) -> Filters:
    """Which listings are considered for an item: others, at a price that is not quite another.

    An item that costs nothing has no price to compare with.
    """
    if not ranking.price_factor or item.price <= 0:
        return Filters(without=(item.item_id,))
    return Filters(
        least_price=math.ceil(item.price / ranking.price_factor),
        most_price=math.floor(item.price * ranking.price_factor),
        without=(item.item_id,),
    )


def candidates_wanted(k: int, ranking: Ranking) -> int:
    """How many candidates are searched for k results."""
    return k * ranking.pool if ranking.category_weight else k


def category_similarity(one: Sequence[str], other: Sequence[str]) -> float:
    """The share of the longer path that two category paths have in common, from the coarsest level on: 0 to 1.

    Two items without a category share nothing.
    """
    shared = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        shared += 1
    return shared / max(len(one), len(other), 1)


def rank(item: Hit, candidates: Sequence[Hit], k: int, ranking: Ranking) -> list[Ranked]:
    """The best k of the candidates, which come by decreasing visual similarity; ties stay in that order.

    A candidate's score is (1 − w) · v + w · c, with v its cosine similarity, c its `category_similarity` to the item, and w
    the weight of the category.
    """
    weight = ranking.category_weight
    if not weight:
        return [Ranked(hit, place, None, hit.score) for place, hit in enumerate(candidates[:k], start=1)]
    shared = [category_similarity(item.category, hit.category) for hit in candidates]
    scores = [(1 - weight) * hit.score + weight * share for hit, share in zip(candidates, shared, strict=True)]
    best = sorted(range(len(candidates)), key=lambda place: -scores[place])[:k]
    return [Ranked(candidates[place], place + 1, shared[place], scores[place]) for place in best]
