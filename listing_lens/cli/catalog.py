"""``lens catalog``: make a demo catalog, or import your own."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from listing_lens.cli.progress import bars_to_fill
from listing_lens.lake.window import Window
from listing_lens.lake.windows import LISTINGS, SESSIONS, Lake
from listing_lens.settings import load_settings

app = typer.Typer(no_args_is_help=True)
# Maximum rows of a summary.
_WINDOWS_SHOWN = 40


@app.command()
def make(
    listings: Annotated[int, typer.Option(help="Items for sale.")] = 2100,
    days: Annotated[int, typer.Option(help="Daily windows that they are spread over.")] = 3,
    sessions: Annotated[int, typer.Option(help="Searches by photo and words.")] = 1500,
    seed: Annotated[int, typer.Option(help="The same seed makes the same catalog.")] = 7,
    start: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="First day, in UTC.")] = datetime(2026, 11, 1),  # noqa: DTZ001
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite any listings in the lake.")] = False,
) -> None:
    """Make a synthetic marketplace: rendered products, sellers' photos of them, and searches by photo."""
    # Imported here: the other commands do not need it and should start fast.
    from listing_lens.demo.plan import DemoSpec
    from listing_lens.demo.write import make_catalog

    lake = Lake(load_settings().lake)
    lake.check()
    spec = DemoSpec(listings, days, sessions, seed, start.replace(tzinfo=UTC))
    with bars_to_fill() as bars:
        photos = bars.add_task("taking photos", total=None)

        def show(done: int, total: int) -> None:
            bars.update(photos, completed=done, total=total)

        written = make_catalog(lake, spec, datetime.now(UTC), replace=replace, progress=show)
    _print_summary(lake, written, [LISTINGS, SESSIONS])


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="CSV in UTF-8, or Parquet.")],
    images: Annotated[Path | None, typer.Option(help="Folder that relative image paths start from.")] = None,
    window: Annotated[str, typer.Option(help="Length of a window: 1d, 6h, 30m.")] = "1d",
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite windows that already hold listings.")] = False,
) -> None:
    """Import your own catalog: all of it or, if any row is invalid, nothing.

    The columns are item_id, title, category ("A > B > C" or "A/B/C"), price (a whole number), image (a path below
    --images, or an address that begins with gs://, http:// or https://), status (on_sale, reserved, sold, deleted),
    created_at and updated_at (ISO 8601; without a zone they are UTC). A file may also have seller_id and product_id (your
    own code of the product), which may be empty. A listing goes to the window of its updated_at.
    """
    from listing_lens.importing.catalog import import_catalog, read_step

    step = read_step(window)
    lake = Lake(load_settings().lake)
    lake.check()
    with Console(stderr=True).status("reading rows") as status:

        def show(rows: int) -> None:
            status.update(f"{rows:,} rows read")

        imported = import_catalog(lake, file, images, step, datetime.now(UTC), replace=replace, progress=show)
    _print_summary(lake, {window: {LISTINGS: rows} for window, rows in imported.windows.items()}, [LISTINGS])
    if imported.missing_images:
        Console(stderr=True).print(
            f"warning: the images of {imported.missing_images:,} rows are not in {images}; "
            "those listings will be set aside as dead letters",
            style="yellow",
        )


def _print_summary(lake: Lake, written: dict[Window, dict[str, int]], datasets: list[str]) -> None:
    """Print one row per window, up to a limit, and the totals."""
    table = Table("window", title=f"written to {lake.root}", show_footer=True)
    table.columns[0].footer = f"windows: {len(written):,}"
    for dataset in datasets:
        total = sum(counts[dataset] for counts in written.values())
        table.add_column(dataset, justify="right", footer=f"{total:,}")
    for window, counts in islice(written.items(), _WINDOWS_SHOWN):
        table.add_row(str(window), *(f"{counts[dataset]:,}" for dataset in datasets))
    if len(written) > _WINDOWS_SHOWN:
        table.add_row("…", *("…" for _ in datasets))
    Console().print(table)
