"""The made catalog as data: which products there are, who lists them when, and what happens to them.

Everything follows from a `DemoSpec`; no image is drawn here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count

import numpy as np

from listing_lens.demo.chance import generator, pick, weighted
from listing_lens.demo.photos.broken import BREAKAGES
from listing_lens.demo.product import Product, make_product
from listing_lens.demo.taxonomy import KINDS
from listing_lens.demo.titles import CONDITIONS, ask_price, base_price, write_reserved_title, write_title
from listing_lens.errors import LensError
from listing_lens.lake.records import SEARCHABLE, Listing, Status
from listing_lens.lake.window import Window

_DAY = timedelta(days=1)
# How many sellers list the same product: mean 3.
_CLUSTER_SIZES, _CLUSTER_WEIGHTS = (1, 2, 3, 4, 5, 6), (0.22, 0.22, 0.2, 0.15, 0.11, 0.1)
_LISTINGS_PER_SELLER = 15
_BROKEN_SHARE = 0.008
# Listings per hour of the day, in UTC: quiet while Japan sleeps, busy in its evening.
_BUSY_HOURS = (5, 6, 6, 7, 6, 5, 5, 6, 7, 8, 10, 12, 13, 12, 9, 6, 3, 2, 1, 1, 1, 2, 3, 4)
_FIRST_STATUS = {Status.ON_SALE: 0.87, Status.RESERVED: 0.05, Status.SOLD: 0.06, Status.DELETED: 0.02}
_UPDATED_SHARE = 0.16
_UPDATES = {"price": 0.38, "sold": 0.28, "photo": 0.16, "reserved": 0.1, "deleted": 0.08}


@dataclass(frozen=True, slots=True)
class DemoSpec:
    """What decides a made catalog.

    Raises:
        LensError: a number out of its range, or a start that is not midnight in UTC.
    """

    listings: int = 2100
    days: int = 3
    sessions: int = 1500
    seed: int = 7
    start: datetime = datetime(2026, 11, 1, tzinfo=UTC)

    def __post_init__(self) -> None:
        for name, least in (("listings", 1), ("days", 1), ("sessions", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise LensError(f"--{name} is {getattr(self, name)}: give {least} or more")
        if self.start.utcoffset() != timedelta(0) or self.start.time() != datetime.min.time():
            raise LensError(f"--start {self.start.isoformat()} is not the beginning of a day in UTC")

    @property
    def windows(self) -> list[Window]:
        """One per day."""
        return list(Window(self.start, self.start + self.days * _DAY).split(_DAY))


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo to be taken: a product, by whom, and where the file goes (relative to the image root)."""

    name: str
    product: Product
    photographer: str
    image_format: str
    breakage: str | None = None


@dataclass(frozen=True, slots=True)
class Version:
    """A listing at one moment, with what the lake does not say about it."""

    listing: Listing
    product: Product
    photo: Photo
    english: bool


@dataclass(frozen=True, slots=True)
class DemoCatalog:
    """All versions of all listings, by time."""

    spec: DemoSpec
    versions: tuple[Version, ...]

    def within(self, window: Window) -> list[Version]:
        return [version for version in self.versions if version.listing.updated_at in window]


def plan_demo(spec: DemoSpec) -> DemoCatalog:
    """Choose the whole catalog; the same spec gives the same one."""
    firsts = _break_some(_first_versions(spec), spec.seed)
    updates = [_update(version, spec) for version in firsts]
    versions = firsts + [version for version in updates if version]
    versions.sort(key=lambda version: (version.listing.updated_at, version.listing.item_id))
    return DemoCatalog(spec, tuple(versions))


def _first_versions(spec: DemoSpec) -> list[Version]:
    sellers = max(6, spec.listings // _LISTINGS_PER_SELLER)
    # A few sellers list much, most list little.
    activity = generator(spec.seed, "sellers").lognormal(0, 0.8, sellers)
    versions: list[Version] = []
    for number in count():
        product = make_product(spec.seed, number)
        rng = generator(spec.seed, "listings", product.product_id)
        size = min(weighted(rng, _CLUSTER_SIZES, _CLUSTER_WEIGHTS), spec.listings - len(versions))
        worth = base_price(product.kind, rng)
        chosen = rng.choice(sellers, size, replace=False, p=activity / activity.sum())
        versions += [_list_item(spec, product, int(seller), worth, rng) for seller in chosen]
        if len(versions) == spec.listings:
            return versions
    raise AssertionError("unreachable")


def _list_item(spec: DemoSpec, product: Product, seller: int, worth: float, rng: np.random.Generator) -> Version:
    item_id = f"m{rng.integers(10**10, 10**11)}"
    english = bool(generator(spec.seed, "language", str(seller)).random() < 0.35)
    condition = weighted(rng, list(CONDITIONS), (2, 3, 4, 4))
    status = weighted(rng, list(_FIRST_STATUS), list(_FIRST_STATUS.values()))
    created = _moment(spec.windows[int(rng.integers(spec.days))], rng)
    title = write_title(product, condition, english, rng)
    if status == Status.RESERVED:
        title = write_reserved_title(english, rng)
    photo = Photo(
        name=image_name(item_id, 1, image_format := weighted(rng, ("jpeg", "png", "webp"), (92, 3, 5))),
        product=product,
        photographer=f"seller-{seller}",
        image_format=image_format,
    )
    listing = Listing(
        item_id=item_id,
        title=title,
        category=KINDS[product.kind].category,
        price=ask_price(worth * CONDITIONS[condition], rng),
        image_uri=photo.name,
        status=status,
        created_at=created,
        # Sold or reserved items became so later on the day on which they were listed.
        updated_at=created if status == Status.ON_SALE else _later_that_day(created, rng),
        seller_id=photo.photographer,
        product_id=product.product_id,
    )
    return Version(listing, product, photo, english)


def _break_some(versions: list[Version], seed: int) -> list[Version]:
    """Break the photos of a few listings that are on sale, each way in turn."""
    rng = generator(seed, "broken")
    whole = [place for place, version in enumerate(versions) if version.listing.status == Status.ON_SALE]
    wanted = min(len(whole), max(1, round(len(versions) * _BROKEN_SHARE)))
    result = list(versions)
    for number, place in enumerate(rng.choice(whole, wanted, replace=False) if whole else []):
        version = result[place]
        name = image_name(version.listing.item_id, 1, "jpeg")
        photo = replace(version.photo, name=name, image_format="jpeg", breakage=BREAKAGES[number % len(BREAKAGES)])
        result[place] = replace(version, photo=photo, listing=replace(version.listing, image_uri=name))
    return result


def _update(version: Version, spec: DemoSpec) -> Version | None:
    """What becomes of a listing on a later day, if anything."""
    before = version.listing
    rng = generator(spec.seed, "update", before.item_id)
    later = [window for window in spec.windows if window.start > before.updated_at]
    if not later or before.status not in SEARCHABLE or rng.random() >= _UPDATED_SHARE:
        return None
    updated = _moment(pick(rng, later), rng)
    what = weighted(rng, list(_UPDATES), list(_UPDATES.values()))
    if what == "price":
        lower = max(300, round(before.price * float(rng.uniform(0.7, 0.95)) / 100) * 100)
        return replace(version, listing=replace(before, price=min(lower, before.price), updated_at=updated))
    if what == "photo":
        name = image_name(before.item_id, 2, "jpeg")
        photo = replace(version.photo, name=name, image_format="jpeg", breakage=None)
        return replace(version, photo=photo, listing=replace(before, image_uri=name, updated_at=updated))
    title = write_reserved_title(version.english, rng) if what == "reserved" else before.title
    return replace(version, listing=replace(before, title=title, status=Status(what), updated_at=updated))


def image_name(name: str, number: int, image_format: str) -> str:
    """Where a photo goes below the image root: spread over 256 folders by the end of the item's name."""
    folder = f"{int(generator(0, 'folder', name).integers(256)):02x}"
    return f"{folder}/{name}-{number}.{'jpg' if image_format == 'jpeg' else image_format}"


def _moment(window: Window, rng: np.random.Generator) -> datetime:
    hour = weighted(rng, range(24), _BUSY_HOURS)
    return window.start + timedelta(hours=hour, seconds=int(rng.integers(3600)))


def _later_that_day(moment: datetime, rng: np.random.Generator) -> datetime:
    midnight = moment.replace(hour=0, minute=0, second=0) + _DAY
    left = int((midnight - moment).total_seconds()) - 1
    return moment + timedelta(seconds=int(rng.integers(left + 1)))
