"""``lens lake``: inspect and maintain the lake."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated

import typer
from rich.table import Column, Table

from listing_lens.cli.console import console
from listing_lens.cli.progress import run_with_bars
from listing_lens.lake.dead_letters import DeadLetters
from listing_lens.lake.embeddings import Embeddings, every_encoder
from listing_lens.lake.ledger import Ledger
from listing_lens.lake.searches import GRACE, kept_since, search_log, why_not_to_land
from listing_lens.lake.window import Window
from listing_lens.lake.windows import LISTINGS, SESSIONS, Lake
from listing_lens.settings import load_settings

app = typer.Typer(no_args_is_help=True)

_KEPT = "MB of every version that is kept"

Encoder = Annotated[str | None, typer.Option(help="Only embeddings of this encoder; default: of every one.")]


@app.callback()
def look_after() -> None:
    """Inspect and maintain the lake."""


@app.command()
def show() -> None:
    """Show what has landed and what is embedded: items, versions, windows, dead letters and sizes, by encoder."""
    lake = _lake()
    for dataset in (LISTINGS, SESSIONS):
        landed = lake.windows(dataset)
        span = f", from {landed[0].start:%Y-%m-%d %H:%M} to {landed[-1].end:%Y-%m-%d %H:%M}" if landed else ""
        console.print(f"{dataset}: {len(landed):,} windows{span}")
    table = Table(Column("encoder", overflow="fold"), "items", "on sale", "version", "files", "MB", caption=_KEPT)
    windows = Table(Column("encoder", overflow="fold"), "windows", "running", "to embed", "dead letters", "transient")
    for embeddings in every_encoder(lake):
        table.add_row(embeddings.encoder_id, *_items(embeddings))
        windows.add_row(embeddings.encoder_id, *_windows(embeddings))
    if table.row_count:
        console.print(table)
        console.print(windows)


@app.command("dead-letters")
def dead_letters(
    encoder_id: Annotated[str | None, typer.Argument(help="The encoder, by its id; default: every one.")] = None,
) -> None:
    """List the listings that could not be embedded, with stage and reason."""
    table = Table(Column("item", overflow="fold"), "stage", Column("reason", overflow="fold"), "tries", "may pass")
    for embeddings in every_encoder(_lake()):
        if encoder_id in (None, embeddings.encoder_id):
            for letter in sorted(DeadLetters(embeddings).letters(), key=lambda letter: letter.key):
                may_pass = "yes" if letter.transient else ""
                table.add_row(letter.item_id, letter.stage, letter.reason, str(letter.attempts), may_pass)
    console.print(table)


@app.command()
def redrive(
    encoder: Annotated[
        str | None, typer.Option(help="The encoder whose dead letters to retry; default: LENS_ENCODER.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Also permanent failures, and those not due yet.")] = False,
) -> None:
    """Retry the listings that could not be embedded."""
    _lake()
    arguments = [*(["--encoder", encoder] if encoder else []), *(["--all"] if every else [])]
    run_with_bars("re-drive", "redrive_dead_letters", arguments, load_settings())


@app.command("land-sessions")
def land_sessions(
    day: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="A day in UTC; default: every one that is over and has not landed."),
    ] = None,
) -> None:
    """Land sessions from the search service's log: searches by photo, and what was tapped."""
    lake = _lake()
    windows = [_day(day)] if day else _days_to_land(lake)
    if not windows:
        console.print("no day of the log of searches is left to land")
    for window in windows:
        arguments = ["--window_start", window.start.isoformat(), "--window_end", window.end.isoformat()]
        run_with_bars("land sessions", "land_sessions", arguments, load_settings())
        why = why_not_to_land(lake, window)
        console.print(why or f"{lake.manifest(SESSIONS, window).counts['rows']:,} sessions of {window} have landed")


@app.command()
def compact(encoder: Encoder = None) -> None:
    """Rewrite small files of the embeddings as large ones, and remove data that is no longer needed, old searches too."""
    lake = _lake()
    days = len(search_log(lake).days())
    before = {embeddings.encoder_id: _size(embeddings) for embeddings in every_encoder(lake)}
    run_with_bars("compact", "compact_lake", ["--encoder", encoder] if encoder else [], load_settings())
    table = Table(Column("encoder", overflow="fold"), "files", "were", "MB", "were", caption=_KEPT)
    for embeddings in every_encoder(lake):
        files, size = _size(embeddings)
        files_before, size_before = before.get(embeddings.encoder_id, (files, size))
        sizes = (f"{size / 1e6:,.1f}", f"{size_before / 1e6:,.1f}")
        table.add_row(embeddings.encoder_id, f"{files:,}", f"{files_before:,}", *sizes)
    console.print(table)
    if forgotten := days - len(search_log(lake).days()):
        console.print(f"searches of {forgotten:,} days are forgotten")


def _lake() -> Lake:
    lake = Lake(load_settings().lake)
    lake.check()
    return lake


def _day(day: date) -> Window:
    start = datetime.combine(day, time(), UTC)
    return Window(start, start + timedelta(days=1))


def _days_to_land(lake: Lake) -> list[Window]:
    """The days of the log that are over, are kept, and have not landed."""
    now, landed = datetime.now(UTC), lake.windows(SESSIONS)
    kept = [day for day in search_log(lake).days() if day >= kept_since(load_settings().search_log_days, now)]
    over = [window for day in kept if (window := _day(day)).end + GRACE <= now]
    return [window for window in over if not any(window.overlaps(other) for other in landed)]


def _items(embeddings: Embeddings) -> list[str]:
    version = embeddings.items.version()
    if version is None:
        return ["–"] * 5
    counts = [embeddings.count(version), embeddings.count(version, "embedding IS NOT NULL"), version]
    files, size = _size(embeddings)
    return [*(f"{count:,}" for count in counts), f"{files:,}", f"{size / 1e6:,.1f}"]


def _windows(embeddings: Embeddings) -> list[str]:
    from listing_lens.embedding.sources import windows_not_embedded

    lines = Ledger(embeddings).lines().values()
    running = sum(line.state == "running" for line in lines)
    letters = list(DeadLetters(embeddings).letters())
    to_embed = len(windows_not_embedded(embeddings.lake, embeddings.encoder_id))
    transient = sum(letter.transient for letter in letters)
    return [f"{count:,}" for count in (len(lines), running, to_embed, len(letters), transient)]


def _size(embeddings: Embeddings) -> tuple[int, int]:
    """The number of files of the items table, and the bytes of all its versions."""
    if not embeddings.items.exists():
        return 0, 0
    return len(embeddings.items.open().get_fragments()), embeddings.lake.size(embeddings.items.path)
