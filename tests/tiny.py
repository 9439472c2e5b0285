"""A tiny marketplace, made in a second, for tests that need listings, photos, sessions and an encoder."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from listing_lens.lake.embeddings import NEWER, Embedded, Embeddings, Item, item_batch
from listing_lens.lake.ledger import Ledger
from listing_lens.lake.records import LISTING_SCHEMA, SESSION_SCHEMA, Listing, Session, Status, to_table
from listing_lens.lake.searches import photo_name, search_log
from listing_lens.lake.window import Window
from listing_lens.lake.windows import LISTINGS, ROWS, SESSIONS, Lake, Manifest
from listing_lens.search.index import Index, SearchIndex

FIRST = Window(datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 11, 2, tzinfo=UTC))
SECOND = Window(FIRST.end, FIRST.end + timedelta(days=1))
NOW = datetime(2026, 11, 5, tzinfo=UTC)


@dataclass(frozen=True)
class Indexed:
    """A lake with embeddings, and an index that awaits them."""

    lake: Lake
    search_index: SearchIndex
    index: Index


def photo(seed: int) -> bytes:
    """A JPEG of coarse random tiles: another seed looks quite different."""
    tiles = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(np.kron(tiles, np.ones((30, 30, 1), np.uint8))).save(data, "JPEG", quality=90)
    return data.getvalue()


def scene(seed: int, *, side: int = 180, quality: int = 95) -> bytes:
    """A JPEG of soft shades, which hashes nearly the same at another size and quality; another seed looks different."""
    shades = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8))
    data = io.BytesIO()
    shades.resize((side, side), Image.Resampling.BICUBIC).save(data, "JPEG", quality=quality)
    return data.getvalue()


def listing(item_id: str, window: Window = FIRST, *, minute: int = 0, **changes: object) -> Listing:
    """A listing on sale, updated so many minutes into the window, whose photo is named like it."""
    moment = window.start + timedelta(minutes=minute)
    made = Listing(item_id, f"title of {item_id}", ("A", "B"), 1200, f"{item_id}.jpg", Status.ON_SALE, moment, moment)
    return replace(made, **changes)  # type: ignore[arg-type]


def land(lake: Lake, window: Window, listings: Sequence[Listing]) -> None:
    """Write a window of listings, as an import would."""
    table = to_table(listings, LISTING_SCHEMA)
    lake.write_table(LISTINGS, window, table, NOW, image_root=image_root(lake))


def land_unchecked(lake: Lake, window: Window, rows: Sequence[Listing | Mapping[str, Any]]) -> None:
    """Write a window of whatever rows, as somebody else's program would: past the lake's own door."""
    table = pa.Table.from_pylist(
        [asdict(row) if isinstance(row, Listing) else dict(row) for row in rows],
        schema=pa.schema([field.with_nullable(True) for field in LISTING_SCHEMA]),
    )
    name = f"{Lake.new_attempt(NOW)}-00000.parquet"
    with lake.open_for_writing(LISTINGS, window, name) as file:
        pq.write_table(table, file)
    lake.commit(
        Manifest(
            dataset=LISTINGS,
            window=window.name,
            files={ROWS: [name]},
            counts={"rows": len(rows)},
            image_root=image_root(lake),
            created_at=NOW,
        )
    )


def land_sessions(lake: Lake, window: Window, sessions: Sequence[Session], **parameters: str) -> None:
    """Write a window of sessions."""
    table = to_table(sessions, SESSION_SCHEMA)
    lake.write_table(SESSIONS, window, table, NOW, image_root=image_root(lake), parameters=parameters)


def log_search(lake: Lake, at: datetime, query: bytes, shown: Sequence[str], tapped: Sequence[str]) -> str:
    """Log a search by photo and what was tapped, as the search service does. Returns its id."""
    log, search_id = search_log(lake), f"{int(1000 * at.timestamp()):012x}{'5' * 20}"
    path = f"{log.folder}/{photo_name(search_id)}"
    entry = {"search_id": search_id, "at": at.isoformat()}
    search = {**entry, "kind": "search", "surface": "photo", "shown": list(shown), "photos": 1}
    lake.write_bytes(path, query)
    log.append([search, *({**entry, "kind": "tap", "item_id": item} for item in tapped)], at, "host.1")
    return search_id


def take_photo(lake: Lake, name: str, seed: int) -> None:
    """Write a photo where listings and sessions look for it."""
    lake.write_bytes(f"{image_root(lake)}/{name}", photo(seed))


def image_root(lake: Lake) -> str:
    return f"{lake.root}/images"


def land_marketplace(lake: Lake, *, items: int = 40, windows: tuple[Window, Window] = (FIRST, SECOND)) -> list[Listing]:
    """Two windows: items on sale, one that is sold in the second, one sold from the start, and one broken photo.

    Returns the listings of both windows.
    """
    one, two = windows
    first = [listing(f"m{n:03d}", one, minute=n) for n in range(items // 2)]
    first[3] = replace(first[3], status=Status.SOLD)
    second = [listing(f"m{n:03d}", two, minute=n) for n in range(items // 2, items)]
    second.append(listing("m001", two, minute=90, status=Status.SOLD))
    for n in range(items):
        take_photo(lake, f"m{n:03d}.jpg", seed=n)
    lake.write_bytes(f"{image_root(lake)}/m002.jpg", b"<html>not found</html>")
    land(lake, one, first)
    land(lake, two, second)
    return first + second


def bounds(window: Window) -> list[str]:
    """A window as the jobs' command lines take it."""
    return ["--window_start", window.start.isoformat(), "--window_end", window.end.isoformat()]


def put_items(
    lake: Lake,
    encoder_id: str,
    listings: Sequence[Listing],
    vectors: Sequence[np.ndarray[Any, Any] | None],
    window: Window = FIRST,
) -> int:
    """Put items into an encoder's table, without embedding them; None is of one without. Returns the table's version."""
    embeddings = Embeddings(lake, encoder_id)
    schema = embeddings.schema(next(len(vector) for vector in vectors if vector is not None), "float32")
    items = [
        Item(listing, window, None if vector is None else Embedded(vector, listing.item_id.encode(), "float32"))
        for listing, vector in zip(listings, vectors, strict=True)
    ]
    return embeddings.items.merge(schema, [item_batch(items, schema)], newer=NEWER).version


def items_of(lake: Lake, encoder_id: str) -> dict[str, dict[str, Any]]:
    """The rows of an encoder's table by item, with embeddings as arrays of float32."""
    rows = Embeddings(lake, encoder_id).items.rows()
    found = {row["item_id"]: row for row in rows}
    assert len(found) == len(rows), "an item is in the table twice"
    for row in rows:
        row["embedding"] = None if row["embedding"] is None else np.array(row["embedding"], np.float32)
    return found


def counts_of(lake: Lake, encoder_id: str, window: Window) -> dict[str, int]:
    """What the ledger counts of a window that is embedded, zeros left out."""
    line = Ledger(Embeddings(lake, encoder_id)).lines()[window]
    assert line.state == "embedded"
    return {name: count for name, count in line.counts.items() if count}


def correlated(
    rows: int, dims: int, *, mean: float = 0.0, scale: float = 1.0, seed: int = 0
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Rows whose principal variances fall from axis to axis, so that each axis is determined."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((dims, dims)))[0]
    deviations = scale * 0.9 ** np.arange(dims)
    return (mean + (rng.standard_normal((rows, dims)) * deviations) @ axes).astype(np.float32)


def remove_indexes(search_index: SearchIndex) -> None:
    """Remove the indexes of an alias, with their records."""
    names = [index.name for index in search_index.all()]
    records = [f"{search_index.alias}.builds", f"{search_index.alias}.loads"]
    search_index.client.indices.delete(index=[*names, *records], ignore_unavailable=True)
