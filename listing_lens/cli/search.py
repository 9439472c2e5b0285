"""`lens search`: embed a photo in the live index's space, search, and show the results."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from listing_lens.errors import LensError
from listing_lens.settings import load_settings


def search(
    photo: Annotated[Path, typer.Argument(help="The photo to search with.")],
    k: Annotated[int, typer.Option("-k", min=1, max=100, help="How many listings to find.")] = 12,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and write no page.")] = False,
    page: Annotated[Path | None, typer.Option(help="Where to write the page; default: below LENS_HOME.")] = None,
) -> None:
    """Find the listings that look most like a photo; prints a table and writes a page of their photos."""
    # Imported here: templates and images are slow to import, and the other commands do not need them.
    from listing_lens.serving import photo_search

    settings = load_settings()
    result = photo_search.search_by_photo(photo, k, settings)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "index": result.index,
                    "space": result.space,
                    "hits": [asdict(hit) for hit in result.hits],
                },
                ensure_ascii=False,
                indent=2,
            )
        )
        return
    wrapped = (Column(name, overflow="fold") for name in ("title", "category", "item"))
    table = Table("", "score", "price", *wrapped)
    for rank, hit in enumerate(result.hits, start=1):
        table.add_row(
            str(rank), f"{hit.score:.3f}", f"¥{hit.price:,}", hit.title, " › ".join(hit.category), hit.item_id
        )
    # Sellers' texts must not be interpreted as markup.
    console = Console(soft_wrap=True, markup=False, emoji=False)
    console.print(table)
    path = page or settings.home / "pages" / f"search-{photo.stem}.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(photo_search.as_page(result), encoding="utf-8")
    except OSError as err:
        raise LensError(f"the page cannot be written to {path}: {err.strerror}; choose another with --page") from err
    console.print(f"page: {path}")
