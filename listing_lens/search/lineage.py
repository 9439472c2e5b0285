"""Where a listing is, and why a search finds it or does not: from what was found of it to plain sentences.

`listing_lens.search.tracing` collects the facts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from listing_lens.lake.dead_letters import Letter
from listing_lens.lake.records import SEARCHABLE
from listing_lens.lake.window import Window
from listing_lens.search.builds import State
from listing_lens.search.documents import Refusal

_FAILED_AT = {
    "fetch": "its photo could not be fetched",
    "decode": "its photo could not be decoded",
    "encode": "its photo could not be encoded",
}


@dataclass(frozen=True)
class Row:
    """An item's row in an encoder's table.

    Attributes:
        window: the landed window that it came from.
        photo: the hash of the photo, in hexadecimal; None without an embedding, as is the backend.
        changed_in: the version of the table that last changed it.
    """

    version: int
    status: str
    updated_at: datetime
    window: Window
    photo: str | None
    backend: str | None
    changed_in: int

    @property
    def searchable(self) -> bool:
        return self.status in SEARCHABLE


@dataclass(frozen=True)
class Source:
    """A row of a landed window of listings; of an invalid one, all but the problem is unknown."""

    window: Window
    status: str | None = None
    updated_at: datetime | None = None
    version: int = 0
    problem: str | None = None


class Progress(StrEnum):
    """How far an encoder has come with a landed window."""

    EMBEDDED = "embedded"
    RUNNING = "being embedded"
    REPLACED = "not embedded as it is: it landed again since"
    WAITING = "not embedded yet"
    GONE = "not in the lake any more"


@dataclass(frozen=True)
class Reading:
    """What an encoder's ledger says of a landed window: which attempt it is of, when that ended or began, and what it read."""

    window: Window
    progress: Progress
    attempt: str | None = None
    at: datetime | None = None
    input: str | None = None


@dataclass(frozen=True)
class InLake:
    """What an encoder's tables hold of an item; `table_version` is 0 if there is no table of items yet."""

    encoder_id: str
    table_version: int
    row: Row | None = None
    letters: tuple[Letter, ...] = ()
    readings: tuple[Reading, ...] = ()

    def reading(self, window: Window) -> Reading | None:
        return next((reading for reading in self.readings if reading.window == window), None)


@dataclass(frozen=True)
class InIndex:
    """What an index holds of an item.

    Attributes:
        version, status: of its document; None if there is none.
        findable: whether a search can find the document, as of the last refresh.
        reached: the version of the encoder's table up to which the index was loaded; 0 before the first load has finished.
        forgets_before: what was sold before this was left out; None if nothing was.
        refusal: what Elasticsearch refused of it last.
    """

    name: str
    state: State
    space: str
    encoder_id: str
    version: int | None = None
    status: str | None = None
    findable: bool = False
    reached: int = 0
    forgets_before: datetime | None = None
    refusal: Refusal | None = None


@dataclass(frozen=True)
class Facts:
    """All that was found of an item.

    Attributes:
        sources: its rows in the landed windows that were looked into.
        indexes: those of the alias, newest build first; None if they could not be asked.
        troubles: what could not be looked at, as sentences without full stops.
    """

    item_id: str
    sources: tuple[Source, ...] = ()
    lakes: tuple[InLake, ...] = ()
    indexes: tuple[InIndex, ...] | None = ()
    troubles: tuple[str, ...] = ()

    def lake_of(self, index: InIndex) -> InLake:
        """What the tables of an index's encoder hold."""
        found = (lake for lake in self.lakes if lake.encoder_id == index.encoder_id)
        return next(found, InLake(index.encoder_id, 0))

    @property
    def live(self) -> InIndex | None:
        return next((index for index in self.indexes or () if index.state is State.LIVE), None)


class Beside(StrEnum):
    """How an index's document compares with the lake's row."""

    SAME = "same"
    OLDER = "older"
    NEWER = "newer"
    MISSING = "missing"
    SURPLUS = "surplus"


@dataclass(frozen=True)
class Comparison:
    """How an index's document compares with the lake's row, and why it does so, as a clause; None if nothing is to say."""

    beside: Beside
    why: str | None = None

    def __str__(self) -> str:
        return f"{self.beside}: {self.why}" if self.why else str(self.beside)


def compare(index: InIndex, lake: InLake) -> Comparison:
    """Compare what an index holds of an item with its encoder's table."""
    row = lake.row
    if row is None:
        return _beside_nothing(index)
    if index.version is None:
        return Comparison(Beside.MISSING, _lacks(index, row, lake.table_version))
    if index.version < row.version:
        return Comparison(Beside.OLDER, _lacks(index, row, lake.table_version))
    if index.version > row.version:
        return Comparison(Beside.NEWER, "it did not come from this lake, or the lake went back to an earlier version")
    if row.searchable and not index.findable:
        return Comparison(
            Beside.SAME, "no search can find it, until the next refresh; if that does not help, repair it"
        )
    return Comparison(Beside.SAME)


def _beside_nothing(index: InIndex) -> Comparison:
    if index.version is None:
        return Comparison(Beside.SAME, "neither has it")
    if index.status in SEARCHABLE:
        return Comparison(Beside.SURPLUS, "the lake does not have it: `lens index verify --repair` deletes it")
    return Comparison(Beside.SURPLUS, f"it was {index.status} so long ago that the lake has forgotten it")


def _lacks(index: InIndex, row: Row, table_version: int) -> str:
    """Why an index does not have the version of a row."""
    if index.refusal and index.refusal.version >= row.version:
        return (
            f"Elasticsearch refused its newest version ({index.refusal.reason}): correct the listing, and land it again"
        )
    if not index.reached:
        return "the index's first load has not finished"
    if row.changed_in > index.reached:
        return (
            f"the index is loaded up to version {index.reached} of {table_version} of the table, and its row changed in "
            f"{row.changed_in}: the next load brings it"
        )
    if index.version is None and not row.searchable:
        if index.forgets_before and row.updated_at < index.forgets_before:
            return f"it was {row.status} long before the index was begun, and left out"
        return f"it was {row.status}, so nothing is lost"
    return f"the load left no reason: `lens index verify {index.name} --repair` mends it"


def explain(facts: Facts, now: datetime) -> list[str]:
    """Say in sentences whether a search finds an item, and why.

    Args:
        facts: what was found.
        now: the current time, timezone-aware.
    """
    lake = facts.lake_of(facts.live) if facts.live else _tells_most(facts)
    pending = list(_pending(facts, lake, now))
    said = [_answer(facts, lake, pending)]
    if pending and (lake.row or (facts.live and facts.live.findable)):
        said.append(f"There is a newer version, which is not embedded: {pending[0]}.")
    said += [f"{trouble}." for trouble in facts.troubles]
    return said


def _tells_most(facts: Facts) -> InLake:
    """Of the encoders, the one with the newest row; before any has one, one with a dead letter."""

    def tells(lake: InLake) -> tuple[int, int, int]:
        return (lake.row.version if lake.row else 0, len(lake.letters), lake.table_version)

    return max(facts.lakes, key=tells, default=InLake("any encoder", 0))


def _answer(facts: Facts, lake: InLake, pending: list[str]) -> str:
    live, row = facts.live, lake.row
    if live and live.findable:
        return _found(live, lake, pending)
    if row is None:
        return f"It is not searchable: {pending[0]}." if pending else _unknown(facts, lake)
    if not row.searchable:
        return f"It is {row.status} since {_time(row.updated_at)}, so no search finds it."
    if facts.indexes is None:
        return f"The lake has it as {row.status}, in its version of {_time(row.updated_at)}, embedded by {lake.encoder_id}."
    if live is None:
        return "It is not searchable: no index is live; build one with `lens index rebuild`."
    comparison = compare(live, lake)
    if comparison.beside is Beside.NEWER:
        return f"It is {live.status} in the live index, in a version newer than the lake's, and no search finds it."
    return f"It is not searchable: {comparison.why}."


def _found(live: InIndex, lake: InLake, pending: list[str]) -> str:
    comparison = compare(live, lake)
    if comparison.beside is Beside.SAME:
        newest = "the newest version that is embedded" if pending else "its newest version"
        return f"It is searchable in the live index, in {newest}."
    if comparison.beside is Beside.SURPLUS:
        return f"It is searchable in the live index, but {comparison.why}."
    age = "an older" if comparison.beside is Beside.OLDER else "a newer"
    return f"It is searchable in the live index, in {age} version than the lake's: {comparison.why}."


def _pending(facts: Facts, lake: InLake, now: datetime) -> Iterator[str]:
    """Why versions newer than the row are not in an encoder's table, as clauses, the newest version first."""
    newest = lake.row.version if lake.row else 0
    for letter in sorted(lake.letters, key=lambda letter: letter.version, reverse=True):
        if letter.version > newest:
            yield _failed(letter, now)
    waiting = [source for source in facts.sources if source.version > newest and not _was_read(source, lake)]
    for source in sorted(waiting, key=lambda source: source.version, reverse=True):
        yield _waits(source, lake)
    for letter in lake.letters:
        if letter.listing is None:
            yield f"its row in window {letter.window} is invalid ({letter.reason}): correct it, and land the window again"
    invalid = [source for source in facts.sources if source.problem and not _was_read(source, lake)]
    for source in invalid:
        yield f"its row in window {source.window}, not embedded yet, is invalid ({source.problem}): correct it, and land it again"


def _was_read(source: Source, lake: InLake) -> bool:
    reading = lake.reading(source.window)
    return reading is not None and reading.progress is Progress.EMBEDDED


def _failed(letter: Letter, now: datetime) -> str:
    tries = "1 try" if letter.attempts == 1 else f"{letter.attempts} tries"
    if letter.due_at is None:
        more = "no other will be made by itself: once the cause is mended, `lens lake redrive --all`"
    elif letter.due_at <= now:
        more = "the next one is due"
    else:
        more = f"the next one at {_time(letter.due_at)}"
    what = _FAILED_AT.get(letter.stage, f"it failed to {letter.stage}")
    return f"{what} ({letter.reason}), {tries}, {more}"


def _waits(source: Source, lake: InLake) -> str:
    reading = lake.reading(source.window)
    window = f"its window {source.window}"
    if reading and reading.progress is Progress.RUNNING:
        return (
            f"{window} has landed, and attempt {reading.attempt} has been embedding it by {lake.encoder_id} since "
            f"{_time(reading.at)}; if that run was killed, `lens embed`"
        )
    again = "landed again since it was embedded" if reading and reading.progress is Progress.REPLACED else "has landed"
    return f"{window} {again} but is not embedded by {lake.encoder_id}: see `embed_new_listings`, or `lens embed`"


def _unknown(facts: Facts, lake: InLake) -> str:
    live = facts.live
    if live and live.version is not None:
        return f"It was {live.status}, so no search finds it, and the lake has forgotten it."
    known = [other.encoder_id for other in facts.lakes if other.row or other.letters]
    if known or facts.sources:
        where = f"{', '.join(known)}" if known else "a landed window"
        return (
            f"It is not searchable: {where} knows it, but not the table of {lake.encoder_id}. If it was sold, it was "
            "forgotten (LENS_LAKE_REMOVED_DAYS); else land it again."
        )
    return (
        f"Nothing is known of {facts.item_id!r}: no encoder's table or dead letter and no window that waits names it. Check "
        "the id, and with `lens lake show` whether its window has landed."
    )


def _time(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment else "an unknown time"
