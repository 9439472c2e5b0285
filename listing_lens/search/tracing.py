"""Collects all that is known of one listing, from the lake and the search cluster, without reading more than that needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import pyarrow.compute as pc

from listing_lens.errors import LensError
from listing_lens.images.source import resolve_uri
from listing_lens.lake.dead_letters import DeadLetters, Letter
from listing_lens.lake.embeddings import Embeddings, every_encoder
from listing_lens.lake.ledger import Ledger, Line, input_of, not_embedded
from listing_lens.lake.records import Refused, parse_listings
from listing_lens.lake.window import Window
from listing_lens.lake.windows import LISTINGS, Lake, Manifest
from listing_lens.search.builds import Build, Builds, State
from listing_lens.search.index import SearchIndex
from listing_lens.search.lineage import Facts, InIndex, InLake, Progress, Reading, Row, Source
from listing_lens.search.loads import Loads
from listing_lens.settings import Settings

_COLUMNS = ["version", "status", "updated_at", "window", "photo", "backend", "_row_last_updated_at_version"]
# Windows that are looked into although nothing names them: the newest ones, and the newest ones that were never embedded.
_NEWEST = 24


def trace(item_id: str, settings: Settings) -> Facts:
    """All that is known of an item. What cannot be reached is said in the `troubles`.

    Raises:
        LensError: the lake cannot be reached.
    """
    lake = Lake(settings.lake)
    lake.check()
    indexes, troubles = _ask_indexes(item_id, settings)
    live = [index.encoder_id for index in indexes or () if index.state is State.LIVE]
    tables = [_Tables.read(embeddings, item_id) for embeddings in every_encoder(lake)]
    landed = lake.windows(LISTINGS)
    # What the live index's encoder has embedded, an encoder that is out of use need not.
    watched = [table for table in tables if table.embeddings.encoder_id in live] or tables
    waiting = _never_embedded(landed, watched)
    wanted = {*landed[-_NEWEST:], *waiting[-_NEWEST:], *(window for table in tables for window in table.named)}
    manifests = lake.manifests(LISTINGS, sorted(wanted & set(landed)))
    open_windows = {window for table in watched for window in table.open(manifests)} if watched else set(manifests)
    looked_into = open_windows | {window for table in tables for window in table.named}
    sources: list[Source] = []
    for window in sorted(looked_into & manifests.keys()):
        try:
            sources += _rows_of(lake, window, manifests[window], item_id)
        except LensError as err:
            troubles = (*troubles, f"Window {window} cannot be read: {err}")
    if more := len(waiting[:-_NEWEST]):
        troubles = (*troubles, f"{more} older windows that are not embedded either were not looked into")
    found = {source.window for source in sources}
    return Facts(
        item_id=item_id,
        sources=tuple(sources),
        lakes=tuple(table.in_lake(manifests, found) for table in tables),
        indexes=indexes,
        troubles=troubles,
    )


@dataclass(frozen=True)
class _Tables:
    """What an encoder's tables hold of an item, and the whole ledger."""

    embeddings: Embeddings
    version: int
    row: Row | None
    letters: tuple[Letter, ...]
    lines: tuple[Line, ...]

    @classmethod
    def read(cls, embeddings: Embeddings, item_id: str) -> _Tables:
        quoted = item_id.replace("'", "''")
        rows = embeddings.items.rows(_COLUMNS, filter=f"item_id = '{quoted}'")
        return cls(
            embeddings=embeddings,
            version=embeddings.items.version() or 0,
            row=_row_of(rows[0]) if rows else None,
            letters=tuple(DeadLetters(embeddings).letters(item_id)),
            lines=tuple(Ledger(embeddings).lines().values()),
        )

    @property
    def named(self) -> set[Window]:
        """The landed windows that the row and the letters came from."""
        return {letter.window for letter in self.letters} | ({self.row.window} if self.row else set())

    def open(self, manifests: Mapping[Window, Manifest]) -> list[Window]:
        """Those of some windows whose current content is not embedded."""
        return not_embedded({window: manifest.identity for window, manifest in manifests.items()}, self.lines)

    def in_lake(self, manifests: Mapping[Window, Manifest], found: set[Window]) -> InLake:
        """With what the ledger says of the windows that the item was found in."""
        windows = sorted(found | self.named)
        return InLake(
            encoder_id=self.embeddings.encoder_id,
            table_version=self.version,
            row=self.row,
            letters=self.letters,
            readings=tuple(_reading(window, manifests.get(window), self.lines) for window in windows),
        )


def _never_embedded(landed: list[Window], tables: list[_Tables]) -> list[Window]:
    """The landed windows that one of the ledgers does not name as an input, in chronological order; no manifest is read."""
    if not tables:
        return landed
    embedded = [{name.partition("@")[0] for line in table.lines for name in line.inputs} for table in tables]
    return [window for window in landed if any(window.name not in names for names in embedded)]


def _row_of(row: Mapping[str, Any]) -> Row:
    return Row(
        version=row["version"],
        status=row["status"],
        updated_at=row["updated_at"],
        window=Window.from_name(row["window"]),
        photo=row["photo"].hex() if row["photo"] else None,
        backend=row["backend"],
        changed_in=row["_row_last_updated_at_version"],
    )


def _reading(window: Window, manifest: Manifest | None, lines: tuple[Line, ...]) -> Reading:
    """What the lines of a ledger say of a landed window."""
    if manifest is None:
        return Reading(window, Progress.GONE)
    current = input_of(window, manifest.identity)
    done = [line for line in lines if current in line.inputs]
    if not not_embedded({window: manifest.identity}, lines):
        last = max(done, key=_completed_at)
        return Reading(window, Progress.EMBEDDED, last.completed_by, last.completed_at, current)
    running = [line for line in lines if line.state == "running" and line.window.overlaps(window)]
    if running:
        latest = max(running, key=lambda line: line.attempted_at)
        return Reading(window, Progress.RUNNING, latest.attempt, latest.attempted_at)
    before = {name: line for line in sorted(lines, key=_completed_at) for name in line.inputs if _is_of(name, window)}
    if before and not done:
        name, line = list(before.items())[-1]
        return Reading(window, Progress.REPLACED, line.completed_by, line.completed_at, name)
    return Reading(window, Progress.WAITING)


def _completed_at(line: Line) -> datetime:
    return line.completed_at or line.attempted_at


def _is_of(name: str, window: Window) -> bool:
    """Whether an input of the ledger is a landed window, whatever its content."""
    return name.partition("@")[0] == window.name


def _rows_of(lake: Lake, window: Window, manifest: Manifest, item_id: str) -> Iterator[Source]:
    """An item's rows in a landed window. The other columns are only read if it is there."""
    ids = lake.read_manifest(manifest, ["item_id"])
    if not any(pc.any(pc.equal(batch.column(0), item_id)).as_py() for batch in ids):
        return
    for batch in lake.read_manifest(manifest):
        its = batch.filter(pc.equal(batch.column("item_id"), item_id))
        for row in parse_listings(its, window):
            if isinstance(row, Refused):
                yield Source(window, problem=row.reason)
            else:
                # Part of the version is a hash of the listing with its absolute address.
                listing = replace(row, image_uri=resolve_uri(row.image_uri, manifest.image_root))
                yield Source(window, str(listing.status), listing.updated_at, listing.version)


# ---- indexes ---------------------------------------------------------------------------------------------------------


def _ask_indexes(item_id: str, settings: Settings) -> tuple[tuple[InIndex, ...] | None, tuple[str, ...]]:
    """What each index holds; None, and why, if the cluster does not answer."""
    try:
        search_index = SearchIndex.connect(settings)
        builds = [build for build in Builds(search_index).all() if build.state is not State.RETIRED]
        return tuple(_in_index(search_index, build, item_id) for build in builds), ()
    except LensError as err:
        return None, (f"The indexes were not looked at: {err}",)


def _in_index(search_index: SearchIndex, build: Build, item_id: str) -> InIndex:
    index = search_index.get(build.index)
    ledger = Loads(search_index, index)
    loads = ledger.all()
    version, status = search_index.versions(index.name, [item_id]).get(item_id, (None, None))
    forgotten = [load.forgets_before for load in loads if load.forgets_before]
    return InIndex(
        name=index.name,
        state=build.state,
        space=index.card.space,
        encoder_id=index.card.encoder_id,
        version=version,
        status=status,
        findable=bool(search_index.with_vector(index.name, [item_id])),
        reached=max((load.version for load in loads if load.finished_at), default=0),
        forgets_before=max(forgotten, default=None),
        refusal=next(iter(ledger.refusals(item_id)), None),
    )
