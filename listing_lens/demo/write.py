"""Takes the photos of a made catalog and writes it to the lake."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from datetime import datetime
from itertools import groupby
from multiprocessing import get_context

import pyarrow as pa

from listing_lens.demo.chance import generator
from listing_lens.demo.drawing import draw
from listing_lens.demo.photos.broken import break_image
from listing_lens.demo.photos.photograph import encode, photograph, plan_shot
from listing_lens.demo.photos.photographer import make_photographer
from listing_lens.demo.plan import DemoCatalog, DemoSpec, Photo, Version, plan_demo
from listing_lens.demo.sessions import DemoSession, plan_sessions
from listing_lens.demo.taxonomy import KINDS
from listing_lens.errors import LensError
from listing_lens.lake.records import LISTING_SCHEMA, SESSION_SCHEMA, to_table
from listing_lens.lake.window import Window
from listing_lens.lake.windows import LISTINGS, SESSIONS, Lake

# What the listings and sessions of a made catalog really show, for tests and evaluations of the demo.
TRUE_LISTINGS = "truth/listings"
TRUE_SESSIONS = "truth/sessions"

_TRUE_LISTING_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("updated_at", LISTING_SCHEMA.field("updated_at").type, nullable=False),
        pa.field("product_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        # How the photo is broken; null for a good one.
        pa.field("breakage", pa.string()),
    ]
)
_TRUE_SESSION_SCHEMA = pa.schema(
    [
        pa.field("session_id", pa.string(), nullable=False),
        pa.field("product_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        # Whether what it showed was in random order.
        pa.field("shuffled", pa.bool_(), nullable=False),
    ]
)
_SCHEMAS = {
    LISTINGS: LISTING_SCHEMA,
    SESSIONS: SESSION_SCHEMA,
    TRUE_LISTINGS: _TRUE_LISTING_SCHEMA,
    TRUE_SESSIONS: _TRUE_SESSION_SCHEMA,
}
Progress = Callable[[int, int], None]


def make_catalog(
    lake: Lake,
    spec: DemoSpec,
    now: datetime,
    *,
    replace: bool = False,
    workers: int | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[Window, dict[str, int]]:
    """Write the catalog of a spec: photos first, the windows' manifests last. The same spec gives the same bytes.

    Args:
        lake: the target; call `check()` on it first.
        spec: what to make.
        now: the manifests' time of creation.
        replace: overwrite listings that something else wrote; windows that the new catalog lacks become empty.
        workers: processes that take photos; as many as there are cores by default.
        progress: called with the photos taken and their total.

    Returns:
        For each window, how many rows each dataset got.

    Raises:
        LensError: the lake holds other listings and ``replace`` is not set.
    """
    parameters = demo_parameters(spec)
    stale = _stale_windows(lake, spec.windows, parameters)
    if stale and not replace:
        raise LensError(
            f"the lake {lake.root} holds {LISTINGS} of {stale[0][1]} that this command did not write with these arguments: "
            "give --replace to write over them, or set LENS_LAKE to another place"
        )
    catalog = plan_demo(spec)
    sessions = plan_sessions(catalog)
    take_photos(lake, catalog, sessions, workers or os.cpu_count() or 1, progress)
    for dataset, window in stale:
        if window not in spec.windows:
            _write(lake, dataset, window, [], now, parameters)
    return {window: _write_window(lake, catalog, sessions, window, now, parameters) for window in spec.windows}


def demo_parameters(spec: DemoSpec) -> dict[str, object]:
    """How a manifest says that its window was made, and from what."""
    return {"catalog": "made", **asdict(spec), "start": spec.start.isoformat()}


def _stale_windows(lake: Lake, ours: Sequence[Window], parameters: dict[str, object]) -> list[tuple[str, Window]]:
    """Windows in the lake, listings first, that do not come from these parameters and hold something."""
    return [
        (dataset, window)
        for dataset in _SCHEMAS
        for window in lake.windows(dataset)
        if (manifest := lake.manifest(dataset, window)).parameters != parameters
        and (manifest.counts.get("rows") != 0 or window in ours)
    ]


def take_photos(
    lake: Lake, catalog: DemoCatalog, sessions: Iterable[DemoSession], workers: int, progress: Progress
) -> None:
    """Write every photo of listings and sessions; each depends only on the seed and its own name."""
    photos = {f"images/{version.photo.name}": version.photo for version in catalog.versions}
    photos |= {f"queries/{photo.name}": photo for found in sessions for photo in found.photos}
    # One drawing serves all photos of a product.
    by_product = sorted(photos.items(), key=lambda item: (item[1].product.product_id, item[0]))
    tasks = [list(group) for _, group in groupby(by_product, key=lambda item: item[1].product.product_id)]
    done = 0
    progress(done, len(photos))
    if workers == 1:
        for task in tasks:
            done += photograph_product(lake, catalog.spec.seed, task)
            progress(done, len(photos))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(photograph_product, lake, catalog.spec.seed, task) for task in tasks]
        for future in as_completed(futures):
            done += future.result()
            progress(done, len(photos))


def photograph_product(lake: Lake, seed: int, photos: list[tuple[str, Photo]]) -> int:
    """Draw a product once, and write all photos of it, given by their paths in the lake; returns how many."""
    drawing = draw(photos[0][1].product)
    for path, photo in photos:
        person = make_photographer(seed, photo.photographer)
        rng = generator(seed, "photo", path)
        shot = plan_shot(person, drawing, KINDS[photo.product.kind].hangs, rng)
        data = encode(photograph(drawing, person, shot, seed), shot, photo.image_format)
        lake.write_bytes(f"{lake.root}/{path}", break_image(photo.breakage, data) if photo.breakage else data)
    return len(photos)


def _write_window(
    lake: Lake,
    catalog: DemoCatalog,
    sessions: list[DemoSession],
    window: Window,
    now: datetime,
    parameters: dict[str, object],
) -> dict[str, int]:
    versions = catalog.within(window)
    searches = [found for found in sessions if found.session.searched_at in window]
    rows: dict[str, Sequence[object]] = {
        TRUE_LISTINGS: [_true_listing(version) for version in versions],
        TRUE_SESSIONS: [_true_session(found) for found in searches],
        SESSIONS: [found.session for found in searches],
        LISTINGS: [version.listing for version in versions],
    }
    for dataset in rows:
        _write(lake, dataset, window, rows[dataset], now, parameters)
    return {dataset: len(rows[dataset]) for dataset in (LISTINGS, SESSIONS)}


def _write(
    lake: Lake,
    dataset: str,
    window: Window,
    rows: Sequence[object],
    now: datetime,
    parameters: dict[str, object],
) -> None:
    root = {LISTINGS: f"{lake.root}/images", SESSIONS: f"{lake.root}/queries"}.get(dataset)
    table = to_table(rows, _SCHEMAS[dataset])
    lake.write_table(dataset, window, table, now, image_root=root, parameters=parameters)


def _true_listing(version: Version) -> dict[str, object]:
    return {
        "item_id": version.listing.item_id,
        "updated_at": version.listing.updated_at,
        "product_id": version.product.product_id,
        "kind": version.product.kind,
        "breakage": version.photo.breakage,
    }


def _true_session(found: DemoSession) -> dict[str, object]:
    return {
        "session_id": found.session.session_id,
        "product_id": found.wanted.product_id,
        "kind": found.wanted.kind,
        "shuffled": found.shuffled,
    }
