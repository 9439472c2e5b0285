"""`lens demo`: the whole workflow on a synthetic marketplace, and where to find the results."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from listing_lens.cli.compare import print_comparison
from listing_lens.cli.pipeline import print_means

console = Console()


class _Terminal:
    """Shows a title per step, and a progress bar per count."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def step(self, title: str) -> None:
        self._bars.console.print(f"\n[bold]{title}[/bold]")

    def say(self, text: str) -> None:
        self._bars.console.print(text, highlight=False, soft_wrap=True)

    def advance(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total)
        self._bars.update(self._tasks[what], completed=done, total=total)


def demo(
    listings: Annotated[int, typer.Option(help="Items for sale.")] = 2100,
    sessions: Annotated[int, typer.Option(help="Searches by photo and words.")] = 1500,
) -> None:
    """Run a demo marketplace through the whole workflow, on real servers that stay up."""
    from listing_lens.demo.run import DemoResult, run_demo

    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        result: DemoResult = run_demo(listings, sessions, _Terminal(bars), now=datetime.now(UTC))
    print_comparison(result.comparison)
    print_means(result.sessions, result.means)
    from listing_lens.cli.search import search
    from listing_lens.stack.airflow_home import USER, password_file

    console.print("\n[bold]A photo is searched with[/bold]")
    search([result.query], text="", k=12, as_json=False, page=None)
    settings = result.settings
    reports = sorted((settings.home / "pages").glob("evaluation-*.html"))
    _print_places(
        {
            "evaluation": str(reports[-1]),
            "Airflow": f"{settings.airflow_url}  (user {USER}, password in {password_file(settings.home)})",
            "MLflow": settings.mlflow_url,
            "search": "lens search PHOTO, or lens search --text WORDS",
            "stop": "make down",
            "page": f"{settings.search_url}  (search with words or a photo, look at similar items)",
        }
    )


def _print_places(places: dict[str, str]) -> None:
    console.print("\n[bold]What to look at, and what to do next[/bold]")
    for name, place in places.items():
        # Not wrapped, so that addresses can be copied.
        console.print(f"  {name:<12}{place}", soft_wrap=True, highlight=False)
