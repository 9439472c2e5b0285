"""What follows when the champion is not live: nothing, the way back, or a new index."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from listing_lens.search.index import Index
from listing_lens.search.lifecycle import Move, what_follows
from models.embedder import EmbedderCard
from models.registry import RegisteredEmbedder


def card(projection_id: str) -> EmbedderCard:
    return EmbedderCard(encoder_source="x", encoder_id="x-1", encoder_dims=16, projection_id=projection_id, dims=4)


def index(projection_id: str, build: str) -> Index:
    name = f"listings-{card(projection_id).space}-{build}"
    return Index(name, card(projection_id), build, uuid=name, created_at=datetime(2026, 11, 1, tzinfo=UTC))


CHAMPION = RegisteredEmbedder(7, card("p7"))


@pytest.mark.parametrize(
    ("champion", "live", "kept", "move"),
    [
        (None, None, [], None),
        (None, index("p6", "1"), [index("p7", "0")], None),
        (CHAMPION, index("p7", "1"), [index("p7", "0")], None),
        (CHAMPION, None, [], Move("rebuild", 7)),
        (CHAMPION, index("p6", "1"), [index("p5", "0")], Move("rebuild", 7)),
        (
            CHAMPION,
            index("p6", "3"),
            [index("p7", "2"), index("p7", "1"), index("p5", "9")],
            Move("rollback", 7, index("p7", "2").name),
        ),
    ],
    ids=["nothing", "no champion", "live already", "first", "no index of it", "newest kept"],
)
def test_what_follows(
    champion: RegisteredEmbedder | None, live: Index | None, kept: list[Index], move: Move | None
) -> None:
    assert what_follows(champion, live, kept) == move
