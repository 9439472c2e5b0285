"""A job's progress in the terminal: one bar per stage."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from listing_lens.jobs import run_job
from listing_lens.progress import Progress
from listing_lens.settings import Settings

console = Console(stderr=True)


def bars_to_fill(width: int = 0) -> Bars:
    """Bars of so many of so many, with the time taken; descriptions are as wide as `width` at least."""
    columns = (TextColumn(f"{{task.description:<{width}}}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Bars(*columns, console=console)


def run_with_bars(title: str, job: str, arguments: Sequence[str], settings: Settings) -> None:
    """Run a Beam job and show the progress of its stages."""
    with bars_to_fill(width=34) as bars:
        stages: dict[str, TaskID] = {}
        waiting = bars.add_task(title, total=None)

        def show(progress: Progress) -> None:
            if progress.stage not in stages:
                stages[progress.stage] = bars.add_task(f"{title}: {progress.stage}", total=progress.total)
                bars.update(waiting, visible=False)
            bars.update(stages[progress.stage], completed=progress.done, total=progress.total)

        run_job(job, arguments, settings, show)
        bars.update(waiting, visible=not stages, total=1, completed=1)
        for task in stages.values():
            # Totals are estimates, counted before superseded versions are dropped.
            done = bars.tasks[bars.task_ids.index(task)].completed
            bars.update(task, total=done)
