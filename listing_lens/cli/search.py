"""`lens search`: embed photos or words in the live index's space, search, and show the results."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from listing_lens.errors import LensError
from listing_lens.settings import load_settings

# In the name of a page, in characters.
_MOST_OF_TEXT = 40


def search(
    photos: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PHOTO", help="The photo to search with, or several of one item."),
    ] = None,
    text: Annotated[str, typer.Option(help="What to look for, in words: alone, or beside the photo.")] = "",
    k: Annotated[int, typer.Option("-k", min=1, max=100, help="How many listings to find.")] = 12,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and write no page.")] = False,
    page: Annotated[Path | None, typer.Option(help="Where to write the page; default: below LENS_HOME.")] = None,
) -> None:
    """Find the listings that look most like a photo, words, or both; prints a table and writes a page of their photos."""
    # Imported here: templates and images are slow to import, and the other commands do not need them.
    from listing_lens.serving import listing_search

    settings = load_settings()
    photos = photos or []
    result = listing_search.search_listings(photos, text, k, settings)
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
    path = page or settings.home / "pages" / _page_name(photos, text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(listing_search.as_page(result), encoding="utf-8")
    except OSError as err:
        raise LensError(f"the page cannot be written to {path}: {err.strerror}; choose another with --page") from err
    console.print(f"page: {path}")


def _page_name(photos: Sequence[Path], text: str) -> str:
    words = re.sub(r"\W+", "-", text).strip("-")[:_MOST_OF_TEXT]
    return "-".join(["search", *(photo.stem for photo in photos[:1]), *([words] if words else [])]) + ".html"
