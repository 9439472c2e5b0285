"""`lens compare`: encoders side by side, on one's own landed search sessions."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Column, Table

from listing_lens.cli.console import console
from listing_lens.cli.pipeline import span_of
from listing_lens.cli.progress import bars_to_fill
from listing_lens.comparison.records import Comparison, ComparisonRow
from listing_lens.errors import LensError
from listing_lens.lake.windows import SESSIONS, Lake
from listing_lens.settings import load_settings

_SHOWN_METRICS = {"P@1": "precision@1", "P@5": "precision@5", "R@5": "recall@5", "R@10": "recall@10"}


def compare(
    encoders: Annotated[
        list[str],
        typer.Argument(
            metavar="ENCODER...",
            help="Folders, hub ids, gs:// addresses, models:/listing-encoder@champion, or pixels:16 for plain thumbnails.",
        ),
    ],
    sessions: Annotated[int, typer.Option(min=2, help="Searches by one photo to sample.")] = 500,
    projection: Annotated[
        int | None, typer.Option(min=1, help="Compare each with a PCA to so many dimensions too.")
    ] = None,
    start: Annotated[str | None, typer.Option(help="Start of the sessions' window; default: the lake's first.")] = None,
    end: Annotated[str | None, typer.Option(help="End of the window, not included; default: the lake's last.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every metric.")] = False,
) -> None:
    """Compare encoders on landed search sessions: how well they rank what was shown, and what they cost.

    Embeddings are kept in LENS_HOME, so that another comparison embeds only what is new. An encoder that cannot be loaded is
    named, and the others are compared; the command then ends with status 1.
    """
    from listing_lens.comparison.landed import compare_landed

    settings = load_settings()
    lake = Lake(settings.lake)
    lake.check()
    landed = lake.windows(SESSIONS)
    if not landed:
        raise LensError(
            f"the lake {settings.lake} holds no sessions: run `lens lake land-sessions` or `lens catalog make`"
        )
    window = span_of(landed, start, end)
    with bars_to_fill() as bars:
        photos = bars.add_task("photos", total=None)

        def show(done: int, total: int) -> None:
            bars.update(photos, completed=done, total=total)

        found = compare_landed(encoders, window, sessions, projection, settings, show)
    if as_json:
        typer.echo(found.comparison.model_dump_json(indent=2))
    else:
        print_comparison(found.comparison)
        for reason, count in found.left_out.items():
            console.print(f"{count:,} of the sampled sessions are left out: {reason}")
    if found.refused:
        raise LensError("; ".join(found.refused.values()))


def print_comparison(comparison: Comparison) -> None:
    """Print how well encoders rank, and what each costs."""
    console.print(quality_table(comparison))
    for row in comparison.rows:
        if row.gain:
            console.print(f"{row.label} gains {row.gain} nDCG@5 over the parent")
    if any(row.cost for row in comparison.rows):
        console.print(cost_table(comparison))


def quality_table(comparison: Comparison) -> Table:
    """A row per encoder and order, over the unseen sessions; and one over the seen sessions, if there are any."""
    first = comparison.rows[0].unseen
    table = Table(
        Column("encoder", overflow="fold"),
        *("dims", "nDCG@5", "95 %", *_SHOWN_METRICS),
        title=f"{first.sessions:,} sessions, {first.clusters:,} products; intervals by bootstrap over products",
    )
    for row in comparison.rows:
        table.add_row(row.label, *_quality(row))
    for row in comparison.rows:
        if row.seen:
            table.add_row(
                f"{row.label}, {row.seen.sessions:,} seen", *_quality(row.model_copy(update={"unseen": row.seen}))
            )
    return table


def cost_table(comparison: Comparison) -> Table:
    """What an image costs with each encoder."""
    table = Table(
        Column("encoder", overflow="fold"),
        "M params",
        "GFLOP",
        "ms",
        "p99",
        "batch",
        "ms each",
        "p99",
        title="per image",
    )
    for row in comparison.rows:
        if row.cost and row.variant == "embedding":
            single, batched = row.cost.single, row.cost.batched
            times = (f"{value:.1f}" for value in (single.p50_ms, single.p99_ms))
            each = (f"{value:.1f}" for value in (batched.p50_ms, batched.p99_ms))
            millions = f"{row.cost.parameters / 1e6:.1f}"
            table.add_row(row.label, millions, f"{row.cost.gflop:.2f}", *times, str(batched.batch), *each)
    return table


def _quality(row: ComparisonRow) -> list[str]:
    metrics = row.unseen.metrics
    headline = metrics["ndcg@5"]
    interval = f"{headline.low:.3f}–{headline.high:.3f}"
    means = (f"{metrics[name].mean:.3f}" for name in _SHOWN_METRICS.values())
    return [str(row.dims or "–"), f"{headline.mean:.3f}", interval, *means]
