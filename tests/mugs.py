"""A sample of pairs and sessions, mugs of four colours, for tests that train and compare on what the lake holds."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from listing_lens.lake.pairs import (
    PAIR_SCHEMA,
    PAIR_SESSION_SCHEMA,
    SESSION_ITEM_SCHEMA,
    SESSION_ITEMS,
    TEST_SESSIONS,
    TRAIN,
    VALIDATION,
    VALIDATION_SESSIONS,
    pairs,
)
from listing_lens.lake.window import Window
from listing_lens.lake.windows import Lake, Manifest
from listing_lens.settings import Settings
from models.finetune.recipe import Recipe

WINDOW = Window(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC))
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (30, 60, 220), "yellow": (230, 200, 20)}
# Plain colours rank its sessions perfectly, so titles decide.
RECIPE = Recipe(
    epochs=2, batch_size=8, learning_rate=1e-3, precision="no", validate_every=3, judged_by="titles/recall@1"
)


def photo(colour: str, seed: int) -> bytes:
    """A JPEG of one colour with noise, so that no two are the same."""
    rng = np.random.default_rng(seed)
    pixels = np.clip(rng.normal(COLOURS[colour], 12, (100, 100, 3)), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def pair(number: int) -> dict[str, object]:
    colour = list(COLOURS)[number % len(COLOURS)]
    return {
        "item_id": f"m{number}",
        "title": f"{colour} mug {number}",
        "category": ["Home"],
        "product_id": None,
        "image": photo(colour, number),
    }


def session(number: int, shown: list[object], *, unseen: bool) -> dict[str, object]:
    """A search by a photo of one colour, in which the items of that colour were tapped."""
    return {
        "session_id": f"s{number}",
        "image": photo(list(COLOURS)[number % 4], 1000 + number),
        "shown": shown,
        "tapped": [place % 4 == number % 4 for place in range(8)],
        "groups": [f"product {number % 4}"],
        "unseen": unseen,
    }


def write_sample(
    lake: Lake,
    name: str,
    *,
    sessions: int = 6,
    tested: Sequence[int] = range(20, 26),
    unseen: Sequence[int] = (20, 22, 24, 25),
    fingerprint: str = "0123456789abcdef",
) -> None:
    """24 training pairs, 8 of validation, and sessions to validate and to test on, of which some are unseen."""
    items = [pair(number) for number in range(100, 108)]
    shown = [item["item_id"] for item in items]
    searches = [session(number, shown, unseen=number % 2 == 0) for number in range(sessions)]
    tests = [session(number, shown, unseen=number in unseen) for number in tested]
    tables = {
        TRAIN: pa.Table.from_pylist([pair(number) for number in range(24)], PAIR_SCHEMA),
        VALIDATION: pa.Table.from_pylist([pair(number) for number in range(50, 58)], PAIR_SCHEMA),
        VALIDATION_SESSIONS: pa.Table.from_pylist(searches, PAIR_SESSION_SCHEMA),
        TEST_SESSIONS: pa.Table.from_pylist(tests, PAIR_SESSION_SCHEMA),
        SESSION_ITEMS: pa.Table.from_pylist(
            [{key: item[key] for key in ("item_id", "image")} for item in items], SESSION_ITEM_SCHEMA
        ),
    }
    for kind, table in tables.items():
        with lake.open_for_writing(pairs(name), WINDOW, f"{kind}.parquet") as file:
            pq.write_table(table, file)
    lake.commit(
        Manifest(
            dataset=pairs(name),
            window=WINDOW.name,
            files={kind: [f"{kind}.parquet"] for kind in tables},
            counts={kind: len(table) for kind, table in tables.items()},
            parameters={"fingerprint": fingerprint},
            created_at=datetime(2026, 1, 3, tzinfo=UTC),
        )
    )


@dataclass(frozen=True)
class Place:
    """A lake with a sample, and where trainings keep their checkpoints."""

    lake: Lake
    parent: str
    settings: Settings
