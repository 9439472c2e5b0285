"""Compares encoders on one's own landed search sessions, with no training before.

Sessions are by one photo, with a tap, sampled by a hash of their ids. An item is looked at as it was searchable last.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from listing_lens.comparison.embeddings import EmbeddingCache, Vectors, embed_photos
from listing_lens.comparison.records import Comparison
from listing_lens.comparison.table import ComparedSession, Contender, compare, require_several_products
from listing_lens.embedding.sources import encoder_runtime, resolve_encoder
from listing_lens.errors import LensError
from listing_lens.images.source import ImageSource, resolve_uri
from listing_lens.lake.records import Listing, QueryKind, Session, by_version, parse_listings, sessions_of
from listing_lens.lake.searches import is_from_log
from listing_lens.lake.window import Window
from listing_lens.lake.windows import LISTINGS, SESSIONS, Lake, Manifest
from listing_lens.settings import Settings
from models.encoders.cost import measure_cost
from models.encoders.encoder import Encoder, shared_encoder
from models.images import ImageError, decode_image
from models.pairs.split import group_of
from models.sampling import sample_number

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
_SALT = "compare"
_READERS = 8
_TIMED_ON = 32


def _silent(done: int, total: int) -> None: ...


@dataclass(frozen=True)
class LandedComparison:
    """A comparison, and what is not in it.

    Attributes:
        comparison: named after the window.
        left_out: how many of the sampled sessions could not be used, by reason.
        refused: encoders that could not be loaded, and why.
    """

    comparison: Comparison
    left_out: Mapping[str, int]
    refused: Mapping[str, str]


@dataclass(frozen=True)
class _Asked:
    """A session, the address of its photo, and whether that is from the search service's log, which forgets it."""

    session: Session
    photo: str
    is_logged: bool


def compare_landed(
    sources: Sequence[str], window: Window, count: int, dims: int | None, settings: Settings, show: Progress = _silent
) -> LandedComparison:
    """Rank what landed sessions showed with several encoders.

    Args:
        sources: name the encoders.
        window: whose sessions are sampled; their items may have been listed before.
        count: sessions to sample.
        dims: of a projection that each encoder is compared with as well, fitted on the photos of the shown items; None for none.
        settings: name the lake and the device, and hold the limits of photos.
        show: called with the photos done and their total.

    Raises:
        LensError: none of the encoders can be loaded, or no session can be used, or all are of one product.
    """
    lake = Lake(settings.lake)
    asked = _sample(lake, window, count)
    if not asked:
        raise LensError(f"no session of {window} is by one photo and has a tap: choose a window with taps")
    encoders, refused = _load(sources, settings)
    listed = _listings(lake, window, {item_id for one in asked for item_id in one.session.shown})
    known = [one for one in asked if all(item_id in listed for item_id in one.session.shown)]
    left_out = Counter({"with an item that has not landed": len(asked) - len(known)})
    wanted = {item_id: listed[item_id].image_uri for one in known for item_id in one.session.shown}
    images = _image_source(lake, window, settings)
    done: Counter[str] = Counter()
    cache = EmbeddingCache(settings.home / "comparison")

    def embed(addresses: Mapping[str, str], kept: EmbeddingCache | None) -> list[Vectors]:
        photos = _read(addresses, images)
        size = settings.encoder_batch_size

        def advance(count: int) -> None:
            done["photos"] += count
            show(done["photos"], len(wanted) + len(known))

        return embed_photos(photos, encoders, images.limits, kept, batch_size=size, advance=advance)

    items = embed(wanted, cache)
    by_feed = embed({one.session.session_id: one.photo for one in known if not one.is_logged}, cache)
    # Their photos are forgotten with the log, and so must be what was made of them.
    by_log = embed({one.session.session_id: one.photo for one in known if one.is_logged}, None)
    queries = [fed | logged for fed, logged in zip(by_feed, by_log, strict=True)]
    usable = [
        one
        for one in known
        if one.session.session_id in queries[0] and all(item_id in items[0] for item_id in one.session.shown)
    ]
    left_out["with a photo that cannot be read"] = len(known) - len(usable)
    if not usable:
        why = ", ".join(f"{count} {reason}" for reason, count in (+left_out).items())
        raise LensError(
            f"none of the {len(asked)} sampled sessions can be used: {why}; choose another window, or land its listings"
        )
    sessions = [_compared(one.session, listed) for one in usable]
    require_several_products([session.groups for session in sessions])
    timed_on = list(_decoded(usable, images))
    contenders: list[Contender] = []
    for encoder, of_queries, of_items in zip(encoders, queries, items, strict=True):
        cost = measure_cost(encoder, timed_on, time.perf_counter)
        alone = Contender("compared", encoder.encoder_id, encoder.source, "embedding", of_queries, of_items, cost)
        contenders.append(alone)
        if dims is not None:
            contenders.append(alone.projected_to(dims, list(of_items.values())))
    rows = compare(contenders, sessions)
    return LandedComparison(Comparison(name=str(window), rows=rows), +left_out, refused)


def _sample(lake: Lake, window: Window, count: int) -> list[_Asked]:
    """The usable sessions of the lowest numbers."""
    manifests = lake.manifests(SESSIONS, lake.windows(SESSIONS, window))
    every = (one for manifest in manifests.values() for one in _usable(lake, manifest))
    return heapq.nsmallest(count, every, key=lambda one: sample_number(_SALT, one.session.session_id))


def _usable(lake: Lake, manifest: Manifest) -> Iterator[_Asked]:
    is_logged = is_from_log(manifest)
    for batch in lake.read_manifest(manifest):
        for session in sessions_of(batch):
            if session.sound and any(session.tapped) and session.query.kind is QueryKind.PHOTO:
                yield _Asked(session, resolve_uri(session.query.image_uris[0], manifest.image_root), is_logged)


def _load(sources: Sequence[str], settings: Settings) -> tuple[list[Encoder], dict[str, str]]:
    """Each encoder once, and those that cannot be loaded."""
    encoders: dict[str, Encoder] = {}
    refused: dict[str, str] = {}
    for source in sources:
        try:
            encoder = shared_encoder(resolve_encoder(source, settings), encoder_runtime(settings))
            encoders.setdefault(encoder.encoder_id, encoder)
        except LensError as err:
            refused[source] = str(err)
    if not encoders:
        raise LensError("; ".join(refused.values()))
    return list(encoders.values()), refused


def _listings(lake: Lake, window: Window, wanted: set[str]) -> dict[str, Listing]:
    """Each wanted item as it was searchable last before the window's end, or as it was last, with absolute addresses."""
    found: dict[str, Listing] = {}
    ids = pa.array(sorted(wanted), pa.string())
    landed = [part for part in lake.windows(LISTINGS) if part.start < window.end]
    for part, manifest in lake.manifests(LISTINGS, landed).items():
        for batch in lake.read_manifest(manifest):
            for listing in parse_listings(batch.filter(pc.is_in(batch["item_id"], ids)), part):
                if isinstance(listing, Listing) and listing.updated_at < window.end:
                    version = replace(listing, image_uri=resolve_uri(listing.image_uri, manifest.image_root))
                    before = found.get(version.item_id, version)
                    found[version.item_id] = max(before, version, key=lambda one: (one.searchable, by_version(one)))
    return found


def _image_source(lake: Lake, window: Window, settings: Settings) -> ImageSource:
    """Reads the photos of landed sessions and listings."""
    landed = {SESSIONS: lake.windows(SESSIONS, window), LISTINGS: lake.windows(LISTINGS)}
    roots = [root for dataset, windows in landed.items() for root in lake.image_roots(dataset, windows)]
    return ImageSource.of(settings).allowing(roots)


def _read(addresses: Mapping[str, str], images: ImageSource) -> Iterator[tuple[str, bytes]]:
    """(name, encoded image), in order, without those that cannot be read."""
    with ThreadPoolExecutor(_READERS, thread_name_prefix="photos") as threads:
        remaining = iter(addresses.items())
        # A few at a time, so that no more are in memory than are embedded together.
        while some := list(islice(remaining, 8 * _READERS)):
            data = threads.map(lambda named: _bytes_at(named[1], images), some)
            yield from ((name, found) for (name, _), found in zip(some, data, strict=True) if found is not None)


def _bytes_at(address: str, images: ImageSource) -> bytes | None:
    try:
        return images.read(address)
    except ImageError as err:
        logger.warning("photo %s is left out: %s", address, err)
        return None


def _decoded(asked: Sequence[_Asked], images: ImageSource) -> Iterator[Image.Image]:
    """A few of the queries' photos, to time encoders on."""
    for one in asked[:_TIMED_ON]:
        yield decode_image(images.read(one.photo), images.limits)


def _compared(session: Session, listed: Mapping[str, Listing]) -> ComparedSession:
    tapped = [listed[item_id] for item_id, was in zip(session.shown, session.tapped, strict=True) if was]
    groups = [
        group_of(
            "product",
            item_id=listing.item_id,
            title=listing.title,
            seller_id=listing.seller_id,
            product_id=listing.product_id,
        )
        for listing in tapped
    ]
    return ComparedSession(session.session_id, session.shown, session.tapped, tuple(dict.fromkeys(groups)))
