"""The demo: a marketplace goes through the whole workflow, on real servers, by the DAGs that production runs.

Each step reports to a `Narrator`, which shows it; a second demo finds what the first one made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from listing_lens.comparison.records import Comparison
from listing_lens.demo.plan import DemoSpec
from listing_lens.demo.training import PAIRS, save_parent
from listing_lens.demo.write import make_catalog
from listing_lens.errors import LensError
from listing_lens.finetuning.records import latest_comparison
from listing_lens.lake.evaluations import mean_of
from listing_lens.lake.records import QueryKind, sessions_of
from listing_lens.lake.window import Window
from listing_lens.lake.windows import LISTINGS, SESSIONS, Lake, evaluations
from listing_lens.registry import connect_registry
from listing_lens.search.index import Index, SearchIndex
from listing_lens.search.lifecycle import what_follows
from listing_lens.serving.search_client import SearchClient
from listing_lens.settings import Settings, home_file, load_settings, running_stack
from listing_lens.stack import Event, down, up
from listing_lens.stack.airflow_api import AirflowApi, BackfillState, RunState
from models.embedder import CHAMPION, ENCODER_MODEL
from models.finetune.recipe import FOR_A_SMALL_PARENT


class Narrator(Protocol):
    """Shows a person what is going on."""

    def step(self, title: str) -> None: ...

    def say(self, text: str) -> None: ...

    def advance(self, what: str, done: int, total: int) -> None: ...


@dataclass(frozen=True)
class DemoResult:
    """What there is to look at in the end."""

    settings: Settings
    # The trained encoder beside its parent and a plain baseline.
    comparison: Comparison
    # Mean over all evaluated sessions, by the names of an evaluation's metrics.
    means: dict[str, float]
    sessions: dict[QueryKind, int]
    query: Path


def keep_demo_settings(spec: DemoSpec, home: Path) -> bool:
    """Save the demo's own settings in its home: daily windows, and encoders that need no hub.

    So `lens` and a later `lens up` see them too. Returns whether they are new.
    """
    text = (
        "# Written by `lens demo`, for whatever has this home.\n"
        f'encoder = "models:/{ENCODER_MODEL}@{CHAMPION}"\n'
        'comparison_encoders = ["pixels:16"]\n'
        'embed_schedule = "@daily"\n'
        f"embed_start = {spec.start.date().isoformat()}\n"
        # The page is for this machine: what is clicked on it is kept without a key.
        "search_open_events = true\n"
    )
    file = home_file(home)
    if file.exists() and file.read_text() == text:
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return True


def run_demo(listings: int, sessions: int, narrator: Narrator, *, now: datetime) -> DemoResult:
    """Run all of it. Raises LensError where a step fails, with what failed and where its log is."""
    base = load_settings()
    lake = Lake(base.lake)
    lake.check()
    spec = _spec(lake, listings, sessions, now)
    if keep_demo_settings(spec, base.home) and running_stack(base.home):
        narrator.say("the local stack runs with other settings: it is started anew")
        down(base)
    settings = load_settings()

    narrator.step("A catalog of sellers' photos")
    _make_catalog(lake, spec, narrator, now)
    narrator.step("Elasticsearch, MLflow, the search service and Airflow")
    up(settings, on_event=lambda event: _say_event(event, narrator))
    # Only now are the addresses known.
    settings = load_settings()
    search_index = SearchIndex.connect(settings)
    with AirflowApi.of_stack(settings) as airflow:
        narrator.step("An encoder is trained on the marketplace's own photos and titles, and registered in MLflow")
        _train_encoder(airflow, lake, settings, narrator)
        narrator.step("Airflow embeds the listings, a window a run")
        _backfill(airflow, "embed_new_listings", spec, narrator)
        narrator.step(
            "A projection is fitted and registered in MLflow, an index is built and verified, its alias swapped"
        )
        _refit_and_rebuild(airflow, settings, narrator)
        narrator.step("The sessions of each day are evaluated")
        _backfill(airflow, "evaluate_offline", spec, narrator)
    narrator.step("The search service has followed the alias")
    live = search_index.require_live()
    with SearchClient(settings.search_url) as service:
        service.wait_until_searching(live.name)
    narrator.say(f"{settings.search_url} searches {live.name}")
    return _result(lake, settings, spec, live.card.space)


def _spec(lake: Lake, listings: int, sessions: int, now: datetime) -> DemoSpec:
    """The catalog that the lake holds, or one of the days before this one."""
    spec = DemoSpec(listings=listings, sessions=sessions)
    landed = lake.windows(LISTINGS)
    if landed:
        days = round((landed[-1].end - landed[0].start) / timedelta(days=1))
        return DemoSpec(listings=listings, sessions=sessions, days=days, start=landed[0].start)
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return DemoSpec(listings=listings, sessions=sessions, start=today - timedelta(days=spec.days))


def _make_catalog(lake: Lake, spec: DemoSpec, narrator: Narrator, now: datetime) -> None:
    if lake.windows(LISTINGS):
        narrator.say(f"the lake {lake.root} holds listings already: they are used as they are")
        return
    make_catalog(lake, spec, now, progress=lambda done, total: narrator.advance("photos taken", done, total))


def _train_encoder(airflow: AirflowApi, lake: Lake, settings: Settings, narrator: Narrator) -> None:
    """Train a small SigLIP, whose image tower has seen ImageNet, by the DAG that fine-tunes a published one in production."""
    if connect_registry(settings).has(CHAMPION, ENCODER_MODEL):
        narrator.say("the registry has a champion already: it is used as it is")
        return
    parent = save_parent(lake, settings.home / "encoders" / "small-siglip")
    narrator.say(
        f"about 4 minutes on two cores, live in MLflow at {settings.mlflow_url}. In production, the parent is "
        "google/siglip-base-patch16-256-multilingual"
    )
    airflow.wait_for_dag("finetune_encoder")
    run_id = airflow.trigger(
        "finetune_encoder", {**PAIRS, "parent": str(parent), "recipe": FOR_A_SMALL_PARENT, "promote": True}
    )
    airflow.unpause("finetune_encoder")
    airflow.wait_for_run("finetune_encoder", run_id, _shown("finetune_encoder", narrator))


def _backfill(airflow: AirflowApi, dag_id: str, spec: DemoSpec, narrator: Narrator) -> None:
    """Run a DAG for every day of the catalog. The runs are created first, so that unpausing does not create them again."""
    airflow.wait_for_dag(dag_id)
    first, last = spec.windows[0].start, spec.windows[-1].start
    backfill = airflow.create_backfill(dag_id, first, last)
    airflow.unpause(dag_id)

    def show(state: BackfillState) -> None:
        done = sum(run.state == "success" for run in state.runs)
        narrator.advance(f"runs of {dag_id}", done, len(spec.windows))

    airflow.wait_for_backfill(dag_id, backfill, show)


def _refit_and_rebuild(airflow: AirflowApi, settings: Settings, narrator: Narrator) -> None:
    """Fit; if the new embedder becomes the champion, Airflow follows it with a rebuild, which is waited for."""
    followed_by = ("rebuild_index", "rollback_index", "follow_champion")
    for dag_id in (*followed_by, "refit_projection"):
        airflow.wait_for_dag(dag_id)
    airflow.pause("refit_projection")
    search_index = SearchIndex.connect(settings)
    before = search_index.live()
    known = [run.run_id for run in airflow.runs("follow_champion")]
    for dag_id in followed_by:
        airflow.unpause(dag_id)
    run_id = airflow.trigger("refit_projection")
    airflow.unpause("refit_projection")
    airflow.wait_for_run("refit_projection", run_id, _shown("refit_projection", narrator))
    live = wait_until_followed(airflow, settings, known, lambda dag_id: _shown(dag_id, narrator))
    if before and live.name == before.name:
        narrator.say("the fit is the champion's own, or stays a candidate: the index stays as it is")
        return
    was = f", no longer to {before.name}" if before else ""
    narrator.say(f"alias {search_index.alias} points to {live.name}{was}")


def wait_until_followed(
    airflow: AirflowApi,
    settings: Settings,
    known: Collection[str],
    on_progress: Callable[[str], Callable[[RunState], None]] = lambda dag_id: lambda state: None,
) -> Index:
    """Wait until the live index is the champion's, by the runs of `follow_champion` that are not among the known ones.

    Args:
        airflow, settings: the stack.
        known: runs from before the champion moved.
        on_progress: of a DAG's name, what is told of its run.

    Returns:
        The live index.

    Raises:
        LensError: a run failed, or nothing follows the champion.
    """
    search_index, registry = SearchIndex.connect(settings), connect_registry(settings)
    seen = set(known)
    while what_follows(registry.champion(), search_index.live(), ()) is not None:
        run_id = airflow.wait_for_new_run("follow_champion", seen)
        state = airflow.wait_for_run("follow_champion", run_id)
        seen.add(run_id)
        # A task that starts a DAG has its name.
        for dag_id in [task.task_id for task in state.tasks if task.task_id != "decide" and task.state == "success"]:
            airflow.wait_for_run(dag_id, airflow.runs(dag_id)[0].run_id, on_progress(dag_id))
    return search_index.require_live()


def _shown(dag_id: str, narrator: Narrator) -> Callable[[RunState], None]:
    def show(state: RunState) -> None:
        done = sum(task.state in ("success", "skipped") for task in state.tasks)
        narrator.advance(f"tasks of {dag_id}", done, len(state.tasks))

    return show


def _say_event(event: Event, narrator: Narrator) -> None:
    if event.step in ("healthy", "running", "external"):
        narrator.say(f"{event.server}: {event.detail}")


def _result(lake: Lake, settings: Settings, spec: DemoSpec, space: str) -> DemoResult:
    manifests = [lake.manifest(evaluations(space), window) for window in lake.windows(evaluations(space))]
    sessions, means = mean_of(manifests)
    return DemoResult(settings, latest_comparison(lake), means, sessions, _a_query(lake, spec.windows))


def _a_query(lake: Lake, windows: Sequence[Window]) -> Path:
    """The query photo of the first session by one photo of the last window that has a tap."""
    window = windows[-1]
    image_root = lake.manifest(SESSIONS, window).image_root
    for batch in lake.read(SESSIONS, [window]):
        for session in sessions_of(batch):
            if any(session.tapped) and session.query.kind is QueryKind.PHOTO:
                return Path(f"{image_root}/{session.query.image_uris[0]}")
    raise LensError(f"no search by photo of {window} has a tap: make the demo's catalog with more sessions")
