"""`lens why`: where a listing is, and why a search finds it or does not."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Column, Table

from listing_lens.cli.console import console
from listing_lens.search.lineage import Facts, InIndex, InLake, Source, compare, explain
from listing_lens.search.tracing import trace
from listing_lens.settings import load_settings

Item = Annotated[str, typer.Argument(help="The item's id.", metavar="ITEM_ID")]


def why(item_id: Item) -> None:
    """Say where a listing is, in the lake and in every index, and why a search finds it or does not."""
    facts, now = trace(item_id, load_settings()), datetime.now(UTC)
    if facts.sources:
        _show("landed", (("row", _landed(source)) for source in facts.sources))
    for lake in facts.lakes:
        _show(f"encoder {lake.encoder_id}", _of_lake(lake, now))
    for index in facts.indexes or ():
        _show(f"index {index.name}", _of_index(index, facts))
    for sentence in explain(facts, now):
        console.print(sentence)


def _show(what: str, rows: Iterator[tuple[str, str]]) -> None:
    # The whole name, on a line of its own: a table would break it.
    console.print(what)
    table = Table(Column(no_wrap=True), Column(overflow="fold"), show_header=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _landed(source: Source) -> str:
    if source.problem:
        return f"in window {source.window}, invalid: {source.problem}"
    return f"in window {source.window}, {source.status}, updated {_time(source.updated_at)}, version {source.version}"


def _of_lake(lake: InLake, now: datetime) -> Iterator[tuple[str, str]]:
    row = lake.row
    if row is None:
        yield "row", "none"
    else:
        yield "row", f"version {row.version}, {row.status}, updated {_time(row.updated_at)}"
        yield "changed", f"in version {row.changed_in} of {lake.table_version} of the table"
        yield "landed in", str(row.window)
        yield "photo", f"{row.photo}, embedded in {row.backend}" if row.photo else "none: it needs no embedding"
    for letter in lake.letters:
        due = "no next try" if letter.due_at is None else f"next try {_time(max(letter.due_at, now))}"
        yield (
            "dead letter",
            f"{letter.stage}: {letter.reason}; tries: {letter.attempts}, the last {_time(letter.failed_at)}; {due}",
        )
    for reading in lake.readings:
        by = f" by attempt {reading.attempt}, {_time(reading.at)}" if reading.attempt else ""
        of = f", of {reading.input}" if reading.input else ""
        yield "ledger", f"window {reading.window} is {reading.progress}{by}{of}"


def _of_index(index: InIndex, facts: Facts) -> Iterator[tuple[str, str]]:
    yield "state", str(index.state)
    yield "space", index.space
    if index.version is None:
        yield "document", "none"
    else:
        yield (
            "document",
            f"version {index.version}, {index.status}, {'found' if index.findable else 'not found'} by searches",
        )
    if index.refusal:
        yield "refused", f"version {index.refusal.version}: {index.refusal.reason}"
    yield "beside the lake", str(compare(index, facts.lake_of(index)))


def _time(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment else "–"
