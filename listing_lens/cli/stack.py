"""`lens up`, `lens status`, `lens down`: the local stack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console
from rich.status import Status
from rich.table import Column, Table

from listing_lens import stack
from listing_lens.settings import load_settings
from listing_lens.stack import Event
from listing_lens.stack.airflow_home import USER, password_file
from listing_lens.stack.servers import NAMES, Airflow


def up(
    only: Annotated[
        list[str] | None, typer.Option(help=f"Start only this server ({', '.join(NAMES)}); can be repeated.")
    ] = None,
) -> None:
    """Start the local stack, Elasticsearch, MLflow, the search service and Airflow, and wait until it is healthy."""
    settings = load_settings()
    console = Console(soft_wrap=True)
    with console.status("starting") as spinner:
        addresses = stack.up(settings, only or NAMES, _narrator(console, spinner))
    if addresses.airflow_url and not Airflow(settings).external_url:
        console.print(f"Airflow's user is {USER}, the password is in {password_file(settings.home)}", highlight=False)
    console.print("`lens status` says how it is, `lens down` ends it", highlight=False)


def status() -> None:
    """Show which servers of the local stack run, where, and what is wrong with them; exits with 1 when one is not healthy."""
    table = Table("server", "state", "address", Column("log", overflow="fold"))
    servers = stack.status(load_settings())
    for server in servers:
        state = "[green]healthy" if not server.problem else f"[red]{server.problem}"
        table.add_row(server.name, state, server.url, str(server.log or ""))
    Console(soft_wrap=True).print(table)
    if any(server.problem for server in servers):
        raise typer.Exit(1)


def down() -> None:
    """Stop the local stack; its data is kept."""
    console = Console(soft_wrap=True)
    with console.status("stopping") as spinner:
        count = stack.down(load_settings(), _narrator(console, spinner))
    ended = f"{count} process{'es' if count > 1 else ''} ended"
    console.print(f"stopped: {ended}" if count else "nothing was running", highlight=False)


def _narrator(console: Console, spinner: Status) -> Callable[[Event], None]:
    """Print finished steps, and show those in progress next to the spinner."""
    under_way: dict[str, str] = {}

    def tell(event: Event) -> None:
        under_way.pop(event.server, None)
        match event.step:
            case "healthy" | "running" | "external":
                words = {"healthy": "started", "running": "already running", "external": "used as the environment says"}
                line = f"[green]✓[/] {event.server}: {words[event.step]}, {event.detail}"
                console.print(line, highlight=False)
            case _:
                under_way[event.server] = " ".join(filter(None, (event.step, event.server, event.detail)))
        spinner.update(", ".join(under_way.values()) or "checking")

    return tell
