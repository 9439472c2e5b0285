"""The commands of `lens`, and how errors are reported."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from typer.core import TyperGroup

from listing_lens.cli import (
    catalog,
    compare,
    demo,
    encoder,
    index,
    lake,
    pipeline,
    promotion,
    search,
    serve,
    stack,
    triton,
    why,
)
from listing_lens.errors import LensError
from listing_lens.settings import load_settings


class SentenceOnRefusal(TyperGroup):
    """Prints the message of a LensError, without a traceback, and exits with status 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LensError as err:
            Console(stderr=True, soft_wrap=True).print(f"error: {err}", style="red", markup=False, highlight=False)
            sys.exit(1)


app = typer.Typer(
    name="lens",
    cls=SentenceOnRefusal,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Visual search and visual recommendation for a marketplace.",
)
app.command()(stack.up)
app.command()(stack.status)
app.command()(stack.down)
app.add_typer(catalog.app, name="catalog", help="Bring listings into the lake.")
app.add_typer(lake.app, name="lake", help="Inspect and maintain the lake.")
app.command()(pipeline.run)
app.command()(pipeline.embed)
app.add_typer(encoder.app, name="encoder", help="Choose what encoders are computed in.")
app.add_typer(pipeline.projection, name="projection", help="Fit the projection.")
app.command()(promotion.promote)
app.add_typer(index.app, name="index", help="Build search indexes, and move the alias between them.")
app.add_typer(triton.app, name="triton", help="Embedders for a Triton Inference Server.")
app.command()(pipeline.evaluate)
app.command()(compare.compare)
app.command()(search.search)
app.command()(serve.serve)
app.command()(serve.key)
app.command()(why.why)
app.command()(demo.demo)


@app.command()
def settings(
    secrets: Annotated[bool, typer.Option(help="Show secrets too.")] = False,
) -> None:
    """Show the current value of every setting."""
    loaded = load_settings()
    table = Table("setting", Column("environment", no_wrap=True), Column("value", overflow="fold"))
    for name, value in loaded.model_dump().items():
        if name == "elasticsearch_api_key" and secrets:
            value = value.get_secret_value()
        table.add_row(name, f"LENS_{name.upper()}", str(value))
    Console(markup=False, emoji=False).print(table)
