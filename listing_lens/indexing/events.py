"""Listings on the wire and in their log: JSON objects, checked at the door."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from listing_lens.lake.log import Entry
from listing_lens.lake.records import (
    MAX_ID_BYTES,
    Listing,
    Status,
    by_version,
    problem_of,
)

# The log's name in the lake.
LOG = "listings"
# How far a seller's clock may be ahead of ours; and how old a change may be that comes through the service, where the service
# is what feeds the lake: a window lands that long after its end.
TOLERANCE = timedelta(minutes=5)

_LONGEST_TITLE = 10_000


class Told(BaseModel):
    """A listing as somebody tells of it: its whole state, without its id."""

    model_config = ConfigDict(extra="forbid")

    title: str = Field(max_length=_LONGEST_TITLE)
    category: list[str] = Field(
        default=[], max_length=20, description="From coarse to fine.", examples=[["Fashion", "Shoes"]]
    )
    price: int = Field(ge=0, le=2**53)
    status: Status = Status.ON_SALE
    image_uri: str | None = Field(
        default=None, max_length=4096, description="Where its photo is, unless the photo comes along."
    )
    created_at: AwareDatetime | None = Field(default=None, description="When it was first listed; now if left out.")
    updated_at: AwareDatetime | None = Field(
        default=None, description="When it last changed: of two tellings, the later one counts. Now if left out."
    )
    seller_id: str | None = Field(default=None, max_length=MAX_ID_BYTES)
    product_id: str | None = Field(default=None, max_length=MAX_ID_BYTES)


class Event(Told):
    """The same with its id: a listing's event on a queue or in a file."""

    item_id: str = Field(min_length=1, max_length=MAX_ID_BYTES)


class EventError(Exception):
    """What is told of a listing cannot be used.

    Attributes:
        reason: a sentence.
        field: what is at fault.
    """

    def __init__(self, reason: str, field: str) -> None:
        super().__init__(reason)
        self.reason, self.field = reason, field


@dataclass(frozen=True)
class Poison:
    """An event that cannot be used, as it came, and why."""

    text: str
    reason: str


def listing_of(item_id: str, told: Told, now: datetime, *, oldest: datetime | None = None) -> Listing:
    """The listing that is told of.

    Args:
        item_id: its id.
        told: the rest.
        now: the time.
        oldest: what changed before that is refused.

    Raises:
        EventError: something in it cannot be.
    """
    updated_at = told.updated_at or now
    row = {
        **told.model_dump(exclude={"updated_at", "created_at", "image_uri"}),
        "item_id": item_id,
        "category": tuple(told.category),
        "image_uri": told.image_uri or "",
        "updated_at": updated_at,
        "created_at": told.created_at or updated_at,
    }
    if problem := problem_of(row):
        field, reason = problem
        raise EventError(reason, field)
    if not all(told.category):
        raise EventError("its category has an empty level", "category")
    if updated_at > now + TOLERANCE:
        raise EventError(f"its updated_at {updated_at.isoformat()} is in the future", "updated_at")
    if oldest and updated_at < oldest:
        raise EventError(
            f"its updated_at {updated_at.isoformat()} is before {oldest.isoformat()}: import it instead", "updated_at"
        )
    listing = Listing(**row)
    if listing.searchable and not listing.image_uri:
        raise EventError("it has no photo and no image_uri", "image_uri")
    return listing


def removal_of(item_id: str, updated_at: datetime | None, now: datetime, *, oldest: datetime | None = None) -> Listing:
    """A listing of which is known only that it was deleted. Raises EventError as `listing_of` does."""
    return listing_of(
        item_id, Told(title="", price=0, status=Status.DELETED, updated_at=updated_at), now, oldest=oldest
    )


def entry_of(listing: Listing, now: datetime) -> Entry:
    """A listing as the log keeps it."""
    return {"at": now.isoformat(), "listing": {**asdict(listing), "status": str(listing.status)}}


def entries_of(events: Iterable[bytes], now: datetime) -> Iterator[Listing | Poison]:
    """Events as they come from a queue or a file: JSON objects with an `item_id` beside what `Told` has."""
    for event in events:
        yield _event(event, now)


def _event(event: bytes, now: datetime) -> Listing | Poison:
    text = event.decode(errors="replace")
    try:
        row = Event.model_validate_json(event)
        return listing_of(row.item_id, Told(**row.model_dump(exclude={"item_id"})), now)
    except ValidationError as err:
        first = err.errors()[0]
        return Poison(text, f"{'.'.join(map(str, first['loc'])) or 'event'}: {first['msg']}")
    except EventError as err:
        return Poison(text, err.reason)


def listing_in(entry: Mapping[str, Any]) -> Listing:
    """The listing of an entry of the log."""
    row = dict(entry["listing"])
    for moment in ("created_at", "updated_at"):
        row[moment] = datetime.fromisoformat(row[moment]).astimezone(UTC)
    return Listing(**{**row, "category": tuple(row["category"]), "status": Status(row["status"])})


def newest(listings: Iterable[Listing]) -> list[Listing]:
    """The newest version of each item, in order of their ids."""
    found: dict[str, Listing] = {}
    for listing in listings:
        known = found.get(listing.item_id)
        if known is None or by_version(listing) > by_version(known):
            found[listing.item_id] = listing
    return [found[item_id] for item_id in sorted(found)]
