"""``lens lake``: look after the lake."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Column, Table

from listing_lens.cli.pipeline import console
from listing_lens.cli.progress import run_with_bars
from listing_lens.lake.compaction import Stored, manifests_of, stored
from listing_lens.lake.windows import Lake, embeddings
from listing_lens.settings import load_settings

app = typer.Typer(no_args_is_help=True)


@app.callback()
def look_after() -> None:
    """Look after the lake."""


@app.command()
def compact(
    encoder: Annotated[str | None, typer.Option(help="Only embeddings of this encoder; default: of every one.")] = None,
    smaller_than: Annotated[float, typer.Option(help="Megabytes from which on a file stays as it is.")] = 64,
) -> None:
    """Move the embeddings of many small windows to a few files; the windows stay what they are, and can be read meanwhile."""
    settings = load_settings()
    lake = Lake(settings.lake)
    lake.check()
    before = _stored(lake)
    arguments = ["--smaller_than", str(smaller_than), *(["--encoder", encoder] if encoder else [])]
    run_with_bars("compact", "compact_embeddings", arguments, settings)
    table = Table(Column("encoder", overflow="fold"), "windows", "files", "were", "MB", "were")
    for encoder_id, now in _stored(lake).items():
        was = before.get(encoder_id, now)
        sizes = (f"{part.bytes / 1e6:,.1f}" for part in (now, was))
        table.add_row(encoder_id, f"{now.windows:,}", f"{now.files:,}", f"{was.files:,}", *sizes)
    console.print(table)


def _stored(lake: Lake) -> dict[str, Stored]:
    datasets = {encoder_id: embeddings(encoder_id) for encoder_id in lake.encoder_ids()}
    return {name: stored(manifests_of(lake, dataset), lake.sizes(dataset)) for name, dataset in datasets.items()}
