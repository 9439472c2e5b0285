"""``lens index``: build search indexes, move the alias between them, and see what became of them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.table import Column, Table

from listing_lens.cli.console import console
from listing_lens.cli.progress import run_with_bars
from listing_lens.errors import LensError
from listing_lens.indexing.listing_log import ListingLog
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.windows import Lake
from listing_lens.search import lifecycle
from listing_lens.search.builds import Build, State
from listing_lens.search.index import SearchIndex
from listing_lens.search.loads import Loads
from listing_lens.search.verification import Verification, require_known
from listing_lens.settings import Settings, load_settings
from models.embedder import CHAMPION

app = typer.Typer(no_args_is_help=True)

# For how long `--wait` waits for another build, and how often a merge is asked whether it has ended.
_PATIENCE = timedelta(hours=11)
_POLL_S = 2.0

Model = Annotated[str, typer.Option(help="A version or an alias of listing-embedder in MLflow.")]
Name = Annotated[str, typer.Argument(help="The index's full name.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for another build to end, instead of failing at once.")]
ForceCheck = Annotated[
    list[str] | None, typer.Option(help="A check of the verification that may fail, e.g. size; it is recorded.")
]
ForceSwap = Annotated[
    list[str] | None,
    typer.Option(help="Swap although the alias (live) or the champion was moved meanwhile; it is recorded."),
]


@app.command()
def rebuild(
    model: Model = CHAMPION,
    afresh: Annotated[bool, typer.Option("--afresh", help="Do not go on with an unfinished build.")] = False,
    wait: Wait = False,
    force_check: ForceCheck = None,
    force_swap: ForceSwap = None,
) -> None:
    """Build a new index for an embedder, verify it, and point the alias to it; the previous index is kept."""
    rebuild_index(
        model, load_settings(), afresh=afresh, wait=wait, force_checks=force_check or (), force_swap=force_swap or ()
    )


@app.command()
def rollback(
    name: Annotated[str | None, typer.Argument(help="A kept index; default: the one that was live last.")] = None,
    wait: Wait = False,
    force_check: ForceCheck = None,
    force_swap: ForceSwap = None,
) -> None:
    """Point the alias back to a kept index, after bringing it up to date and verifying it; its embedder becomes the champion."""
    from listing_lens import registration

    settings = load_settings()
    _check(settings, force_check or (), force_swap or ())
    build = lifecycle.begin_rollback(
        name, settings, owner=owner(), because="rollback", wait=_PATIENCE if wait else timedelta(0)
    )
    with _or_give_up(build, settings):
        _embed_missing(build, settings)
        _catch_up_and_verify(build, settings, force_check or ())
        registration.promote_build(build.index, settings, by=owner())
        _swap(build, settings, force_swap or ())


@app.command("list")
def list_indexes() -> None:
    """List the builds of the alias, newest first: what each is, and what it holds."""
    builds = lifecycle.connect_builds(load_settings(), patience_s=0)
    table = Table(Column("index", overflow="fold"), "state", "searchable", "removed", "began", "verified")
    for build in builds.all():
        held = builds.search_index.counts(build.index) if build.state is not State.RETIRED else None
        numbers = (f"{held['searchable']:,}", f"{held['removed']:,}") if held else ("–", "–")
        verified = "–" if build.verification is None else "passed" if build.verification.passed else "failed"
        table.add_row(build.index, str(build.state), *numbers, _time(build.started_at), verified)
    console.print(table)
    holder = builds.lock.holder()
    if holder and not holder.is_free(builds.now()):
        console.print(f"the lock is held for {holder.index} by {holder.owner}")


@app.command()
def show(name: Annotated[str | None, typer.Argument(help="The index; default: the live one.")] = None) -> None:
    """Show a build's record: who and what for, progress, steps, dead letters, verification."""
    builds = lifecycle.connect_builds(load_settings(), patience_s=0)
    build = builds.get(name or builds.search_index.require_live().name)
    now = datetime.now(UTC)
    for label, value in _facts(build, now).items():
        console.print(f"{label + ':':14}{value}")
    if build.steps:
        steps = Table("step", "began", "took", Column("outcome", overflow="fold"))
        for step in build.steps:
            took = f"{((step.ended_at or now) - step.started_at).total_seconds():,.1f} s"
            steps.add_row(step.name, _time(step.started_at), took, step.outcome or "running, or killed")
        console.print(steps)
    if build.verification:
        console.print(verification_table(build.verification))


@app.command()
def verify(
    name: Annotated[str | None, typer.Argument(help="The index; default: the live one.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Write what differs again from the lake.")] = False,
) -> None:
    """Compare an index with the lake, try it out, and report."""
    settings = load_settings()
    index = SearchIndex.connect(settings)
    found = index.get(name) if name else index.require_live()
    try:
        run_with_bars(
            "verify index", "verify_index", ["--index", found.name, *(["--repair"] if repair else [])], settings
        )
    finally:
        _report(found.name, settings)


@app.command()
def retire(
    name: Annotated[
        str | None, typer.Argument(help="An index that is not live; default: those that the policy does not keep.")
    ] = None,
) -> None:
    """Remove indexes that are not needed any more: one by name, or old and failed ones (LENS_INDEX_KEEP_…)."""
    settings = load_settings()
    if name:
        lifecycle.retire_build(name, settings)
    gone = [name] if name else lifecycle.retire(settings)
    for index in gone:
        console.print(f"index {index} is removed")
    if not gone:
        console.print("every index is live, being built or kept for rollback: nothing is removed")


def rebuild_index(
    model: str,
    settings: Settings,
    *,
    afresh: bool = False,
    wait: bool = False,
    force_checks: Sequence[str] = (),
    force_swap: Sequence[str] = (),
) -> None:
    """Take an embedder to a live index, step by step as the DAG `rebuild_index` does."""
    _check(settings, force_checks, force_swap)
    build = lifecycle.begin_build(
        model,
        settings,
        owner=owner(),
        because=f"rebuild for {model}",
        afresh=afresh,
        wait=_PATIENCE if wait else timedelta(0),
    )
    with _or_give_up(build, settings):
        _embed_missing(build, settings)
        _job(build, "load", "load_index", [], settings)
        merge = lifecycle.finish_load(build.index, settings)
        while not lifecycle.is_merged(build.index, merge, settings):
            time.sleep(_POLL_S)
        _catch_up_and_verify(build, settings, force_checks)
        _swap(build, settings, force_swap)
    for gone in lifecycle.retire(settings):
        console.print(f"index {gone} is removed")


def owner() -> str:
    """Who the records say it was; two terminals are two owners."""
    from listing_lens.registration import by_whom

    return f"{by_whom()} (process {os.getpid()})"


def verification_table(verification: Verification) -> Table:
    """The checks of a verification, and what each says."""
    table = Table("check", "", Column("", overflow="fold"), title=f"verified {_time(verification.ended_at)}")
    for check in verification.checks:
        outcome = "left out" if check.passed is None else "passed" if check.passed else "failed"
        table.add_row(check.name, f"{outcome}, forced" if check.name in verification.forced else outcome, check.says)
    return table


def _check(settings: Settings, force_checks: Sequence[str], force_swap: Sequence[str]) -> None:
    """Refuse at once what would fail late, or be waited for."""
    SearchIndex.connect(settings)
    require_known(force_checks)
    lifecycle.require_fences(force_swap)


@contextmanager
def _or_give_up(build: Build, settings: Settings) -> Iterator[None]:
    """Free the lock when a step fails. The index stays: another rebuild for its space goes on with it."""
    try:
        yield
    except BaseException as err:
        # If the cluster cannot be reached, the lock lapses by itself.
        with suppress(LensError):
            lifecycle.give_up(build.index, settings, because=str(err) or type(err).__name__)
        raise


def _embed_missing(build: Build, settings: Settings) -> None:
    from listing_lens.embedding.sources import windows_not_embedded

    if windows_not_embedded(Lake(settings.lake), build.card.encoder_id):
        with lifecycle.connect_builds(settings).step(build.index, "embed_missing"):
            arguments = ["--each_landed", "--encoder", build.card.encoder_source]
            run_with_bars("embed", "embed_listings", arguments, settings)


def _catch_up_and_verify(build: Build, settings: Settings, force: Sequence[str]) -> None:
    """Bring the index up to date and prove it; what is embedded or told of meanwhile comes in before the alias may move."""
    _catch_up("catch_up", build, settings)
    _verify(build, settings, force)
    _catch_up("catch_up_again", build, settings)
    _replay(build, settings)


def _catch_up(step: str, build: Build, settings: Settings) -> None:
    search_index = SearchIndex.connect(settings)
    loads = Loads(search_index, search_index.get(build.index))
    if loads.is_behind(Embeddings(Lake(settings.lake), build.card.encoder_id)):
        _job(build, step, "load_index", [], settings)


def _replay(build: Build, settings: Settings) -> None:
    if ListingLog.of(Lake(settings.lake)).files_not_landed(datetime.now(UTC)):
        _job(build, "replay", "replay_listings", [], settings)


def _verify(build: Build, settings: Settings, force: Sequence[str]) -> None:
    forced = [word for name in force for word in ("--force", name)]
    try:
        _job(build, "verify", "verify_index", forced, settings)
    finally:
        _report(build.index, settings)


def _job(build: Build, step: str, job: str, arguments: list[str], settings: Settings) -> None:
    with lifecycle.connect_builds(settings).step(build.index, step):
        run_with_bars(step.replace("_", " "), job, ["--index", build.index, *arguments], settings)


def _report(index_name: str, settings: Settings) -> None:
    """Show the checks, and say where their page is."""
    from listing_lens import registration

    verification = lifecycle.connect_builds(settings).get(index_name).verification
    if verification:
        console.print(verification_table(verification))
        console.print(f"page: {registration.log_verification(verification, settings)}")


def _swap(build: Build, settings: Settings, force: Sequence[str]) -> None:
    before = lifecycle.swap_in(build.index, settings, force=force)
    console.print(f"alias {settings.alias} points to {build.index}" + (f", no longer to {before}" if before else ""))


def _facts(build: Build, now: datetime) -> dict[str, str]:
    facts = {
        "index": build.index,
        "space": build.card.space,
        "state": f"{build.state}" + (f": {build.ended_because}" if build.ended_because else ""),
        "owner": f"{build.owner}, {build.because}",
        "embedder": f"version {build.model_version}; the champion was {build.champion}"
        if build.model_version
        else "unknown",
        "began": f"{_time(build.started_at)}, when {build.replaces or 'nothing'} was live",
    }
    if build.live_at:
        facts["live"] = f"{'since' if build.state is State.LIVE else 'until'} {_time(build.live_at)}"
    if progress := build.progress:
        remaining = progress.remaining(now)
        left = "" if progress.finished_at or remaining is None else f", {remaining.total_seconds():,.0f} s to go"
        facts["load"] = f"{progress.done:,} of {progress.expected:,} rows, {progress.rate(now):,.0f} a second{left}"
        facts["dead letters"] = f"{progress.refused:,} documents that the index refused"
    if build.forced:
        facts["forced"] = ", ".join(build.forced)
    return facts


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"
