"""From listings to a searchable index on the command line: embed, fit and evaluate, or all in one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table

from listing_lens.cli.console import console
from listing_lens.cli.index import Model, rebuild_index
from listing_lens.cli.progress import run_with_bars
from listing_lens.errors import LensError
from listing_lens.lake.evaluations import KIND_TITLES, kinds_evaluated, means_of
from listing_lens.lake.fits import Assessment, load_assessment
from listing_lens.lake.records import QueryKind
from listing_lens.lake.window import Window
from listing_lens.lake.windows import LISTINGS, SESSIONS, Lake, evaluations
from listing_lens.search.index import SearchIndex
from listing_lens.settings import Settings, load_settings
from models.embedder import CANDIDATE, CHAMPION

projection = typer.Typer(no_args_is_help=True)

Start = Annotated[
    str | None, typer.Option(help="Start of the window, e.g. 2026-01-31T00:00:00Z; default: the lake's first.")
]
End = Annotated[str | None, typer.Option(help="End of the window, not included; default: the lake's last.")]
Encoder = Annotated[
    str | None,
    typer.Option(
        help="A folder, a hub id, a gs:// address, or models:/listing-encoder@champion in MLflow; default: LENS_ENCODER."
    ),
]


def embed(start: Start = None, end: End = None, encoder: Encoder = None) -> None:
    """Embed the listings of every landed window that is not embedded yet."""
    _embed(_span(LISTINGS, start, end, load_settings()), load_settings(), encoder)


@projection.command("fit")
def fit(
    dims: Annotated[int | None, typer.Option(help="Dimensions to keep; default: LENS_PROJECTION_DIMS.")] = None,
    explained_variance: Annotated[
        float | None, typer.Option(help="Keep as few dimensions as hold this share of the variance, instead of --dims.")
    ] = None,
    whiten: Annotated[bool, typer.Option("--whiten", help="Scale every kept axis to the same variance.")] = False,
    fraction: Annotated[
        float | None, typer.Option(help="Fit on this share of the items, sampled by a hash of their ids; default: all.")
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(help="Fit on approximately this many embeddings, sampled likewise; not with --fraction."),
    ] = None,
    start: Start = None,
    end: End = None,
    encoder: Encoder = None,
    items: Annotated[
        int | None, typer.Option(help="Approximate number of items to assess it on; default: 20,000.")
    ] = None,
    queries: Annotated[int | None, typer.Option(help="Number of these used as queries; default: 500.")] = None,
    promote: Annotated[bool, typer.Option(help="Make it the champion; the first one always becomes champion.")] = False,
) -> None:
    """Fit the projection on the lake's embeddings, assess it, and register the embedder in MLflow."""
    settings = load_settings()
    _require_one_at_most(dims=dims, explained_variance=explained_variance)
    _require_one_at_most(fraction=fraction, rows=rows)
    options = [
        *_option("--dims", dims),
        *_option("--explained_variance", explained_variance),
        *(["--whiten"] if whiten else []),
        *_option("--fraction", fraction),
        *_option("--rows", rows),
        *(_bounds(_span(LISTINGS, start, end, settings)) if start or end else []),
        *_option("--encoder", encoder),
    ]
    assessed_on = [*_option("--items", items), *_option("--queries", queries)]
    _fit(settings, options, assessed_on, promote=promote)


def evaluate(start: Start = None, end: End = None, model: Model = CHAMPION) -> None:
    """Evaluate an embedder on the search sessions of a window."""
    settings = load_settings()
    _evaluate(_span(SESSIONS, start, end, settings), model, settings)


def run(
    encoder: Encoder = None,
    dims: Annotated[int | None, typer.Option(help="Dimensions to keep; default: LENS_PROJECTION_DIMS.")] = None,
) -> None:
    """Take the lake's listings to a searchable index: embed, fit, rebuild, swap."""
    from listing_lens.embedding.sources import resolve_encoder
    from listing_lens.registry import connect_registry

    settings = load_settings()
    # Embedding may take hours: fail early if what the later steps need is not available.
    SearchIndex.connect(settings)
    connect_registry(settings)
    # An alias may move in the meantime: resolve it once, so that all steps use the same encoder.
    encoder = resolve_encoder(encoder, settings)
    _embed(_span(LISTINGS, None, None, settings), settings, encoder)
    rebuild_index(str(_fit(settings, [*_option("--dims", dims), "--encoder", encoder], promote=True)), settings)
    console.print("search it with `lens search PHOTO`")


def _embed(window: Window, settings: Settings, encoder: str | None) -> None:
    arguments = [*_bounds(window), "--each_landed", *_option("--encoder", encoder)]
    run_with_bars("embed", "embed_listings", arguments, settings)


def _fit(settings: Settings, options: Sequence[str], assessed_on: Sequence[str] = (), *, promote: bool) -> int:
    """Fit and assess with the given job options, register, and promote if asked or if there is no champion yet."""
    from listing_lens import registration
    from listing_lens.registry import connect_registry

    connect_registry(settings)
    name = _build_name()
    run_with_bars("fit projection", "fit_projection", ["--name", name, *options], settings)
    previous = registration.previous_projection(name, settings)
    arguments = ["--name", name, *_option("--previous", previous), *assessed_on]
    run_with_bars("assess projection", "assess_projection", arguments, settings)
    assessment = load_assessment(Lake(settings.lake), name)
    if assessment is not None:
        console.print(assessment_table(assessment))
        console.print(assessment.advice)
    version = registration.register_fit(name, settings)
    promoted = registration.promote(version, asked=promote, settings=settings)
    console.print(f"listing-embedder version {version} is the {CHAMPION if promoted else CANDIDATE}")
    return version


def _evaluate(window: Window, model: str, settings: Settings) -> None:
    from listing_lens import registration
    from listing_lens.registry import connect_registry

    embedder = connect_registry(settings).get(model)
    arguments = [*_bounds(window), "--card", embedder.card.model_dump_json()]
    run_with_bars("evaluate", "evaluate_sessions", arguments, settings)
    page = registration.log_evaluation(window, embedder, settings)
    print_metrics(window, embedder.card.space, settings)
    console.print(f"page: {page}")


def print_metrics(window: Window, space: str, settings: Settings) -> None:
    """Print the mean metrics of an evaluation in the lake."""
    manifest = Lake(settings.lake).manifest(evaluations(space), window)
    print_means(kinds_evaluated(manifest.counts), manifest.parameters["metrics"], f" of {window}")


def print_means(sessions: Mapping[QueryKind, int], means: Mapping[str, float], of: str = "") -> None:
    """Print means by the names of an evaluation's metrics, a table per kind of query."""
    for kind, count in sessions.items():
        console.print(metrics_table(f"{count:,} searches {KIND_TITLES[kind]}{of}", means_of(means, kind)))


def assessment_table(assessment: Assessment) -> Table:
    """Recall, a row per number of dimensions, next to the previous projection's if there is one; and the angles between them."""
    now, change = assessment.fitted.recall, assessment.change
    before = change.before.recall if change else {}
    names = list(now[assessment.fitted.dims])
    title = f"recall, of {assessment.queries:,} queries among {assessment.items:,} items"
    caption = (
        None
        if change is None
        else (
            f"angles to the axes before: {change.mean_angle_degrees:.2f}° on average, {change.largest_angle_degrees:.2f}° at most"
        )
    )
    # Short headers, so that they fit a narrow terminal.
    cutoffs = [name.removeprefix("recall") for name in names]
    table = Table("dims", *cutoffs, *(f"before {k}" for k in cutoffs if before), title=title, caption=caption)
    for dims in sorted({*now, *before}):
        values = [by_dims.get(dims, {}).get(name) for by_dims in (now, before) if by_dims for name in names]
        table.add_row(str(dims), *("–" if value is None else f"{value:.3f}" for value in values))
    return table


def metrics_table(title: str, means: Mapping[str, float]) -> Table:
    """Means by `variant/metric@k`, with a row per metric to fit a narrow terminal."""
    from listing_lens.registration import VARIANTS

    table = Table("metric", *VARIANTS.values(), title=title)
    for name in (
        "ndcg@5",
        "precision@1",
        "precision@3",
        "precision@5",
        "recall@1",
        "recall@3",
        "recall@5",
        "recall@10",
    ):
        table.add_row(name, *(f"{means[f'{variant}/{name}']:.3f}" for variant in VARIANTS))
    return table


def _span(dataset: str, start: str | None, end: str | None, settings: Settings) -> Window:
    """The window of two options, which must have landed; a missing bound is that of what has landed."""
    lake = Lake(settings.lake)
    lake.check()
    landed = lake.windows(dataset)
    if not landed:
        raise LensError(
            f"the lake {settings.lake} holds no {dataset}: run `lens catalog make` or `lens catalog import`"
        )
    window = span_of(landed, start, end)
    if start or end:
        lake.covering(dataset, window)
    return window


def span_of(landed: Sequence[Window], start: str | None, end: str | None) -> Window:
    """The window of two options; a missing bound is that of what has landed."""
    return Window.parse(start or landed[0].start.isoformat(), end or max(window.end for window in landed).isoformat())


def _bounds(window: Window) -> list[str]:
    return ["--window_start", window.start.isoformat(), "--window_end", window.end.isoformat()]


def _require_one_at_most(**options: object | None) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise LensError(f"{' and '.join(given)} exclude each other: give one of them")


def _option(name: str, value: object | None) -> list[str]:
    return [] if value is None else [name, str(value)]


def _build_name() -> str:
    return f"{datetime.now(UTC):%Y%m%dt%H%M%S}"
