"""The demo: a marketplace goes through the whole workflow, on real servers, by the DAGs that production runs.

Each step says what it does to a `Narrator`, which draws it; a second demo finds what the first one made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from listing_lens.catalog.demo import DemoSpec
from listing_lens.catalog.write import make_catalog
from listing_lens.errors import LensError
from listing_lens.lake import LISTINGS, SESSIONS, Lake, evaluations
from listing_lens.search_index import SearchIndex
from listing_lens.settings import Settings, home_file, load_settings, running_stack
from listing_lens.stack import Event, down, up
from listing_lens.stack.airflow_api import AirflowApi, BackfillState, RunState
from listing_lens.window import Window


class Narrator(Protocol):
    """Shows a person what goes on."""

    def step(self, title: str) -> None: ...

    def say(self, text: str) -> None: ...

    def advance(self, what: str, done: int, total: int) -> None: ...


@dataclass(frozen=True)
class DemoResult:
    """What there is to look at in the end."""

    settings: Settings
    # Mean over all evaluated sessions, by `variant/metric@k`.
    means: dict[str, float]
    sessions: int
    query: Path


def keep_demo_settings(spec: DemoSpec, home: Path) -> bool:
    """Keep the demo's own settings with its home: daily windows, and an encoder that needs no hub.

    So `lens` and a later `lens up` see them too. Returns whether they are new.
    """
    text = (
        "# Written by `lens demo`, for whatever has this home.\n"
        f'encoder = "{home / "encoders" / "untrained-siglip"}"\n'
        'embed_schedule = "@daily"\n'
        f"embed_start = {spec.start.date().isoformat()}\n"
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
    narrator.step("An encoder")
    _make_encoder(Path(settings.encoder), narrator)
    narrator.step("Elasticsearch, MLflow and Airflow")
    up(settings, on_event=lambda event: _say_event(event, narrator))
    # Addresses are known only now.
    settings = load_settings()
    search_index = SearchIndex.connect(settings)
    with AirflowApi.of_stack(settings) as airflow:
        narrator.step("Airflow embeds the listings, a window a run")
        _backfill(airflow, "embed_new_listings", spec, narrator)
        narrator.step(
            "A projection is fitted and registered in MLflow, an index is built and verified, its alias swapped"
        )
        _refit_and_rebuild(airflow, search_index, narrator)
        narrator.step("The sessions of each day are evaluated")
        _backfill(airflow, "evaluate_offline", spec, narrator)
    return _result(lake, settings, spec, search_index.require_live().card.space)


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


def _make_encoder(folder: Path, narrator: Narrator) -> None:
    if not (folder / "preprocessor_config.json").exists():
        from models.demo_encoder import save_untrained_siglip

        save_untrained_siglip(folder)
    narrator.say(
        f"a small SigLIP at {folder}. Its weights are UNTRAINED: it sees little more than colours and coarse shapes. "
        "In production, set LENS_ENCODER=google/siglip-base-patch16-256-multilingual"
    )


def _backfill(airflow: AirflowApi, dag_id: str, spec: DemoSpec, narrator: Narrator) -> None:
    """Run a DAG for every day of the catalog. The runs are made first, so that unpausing does not make them again."""
    airflow.wait_for_dag(dag_id)
    first, last = spec.windows[0].start, spec.windows[-1].start
    backfill = airflow.create_backfill(dag_id, first, last)
    airflow.unpause(dag_id)

    def show(state: BackfillState) -> None:
        done = sum(run.state == "success" for run in state.runs)
        narrator.advance(f"runs of {dag_id}", done, len(spec.windows))

    airflow.wait_for_backfill(dag_id, backfill, show)


def _refit_and_rebuild(airflow: AirflowApi, search_index: SearchIndex, narrator: Narrator) -> None:
    """Fit; when the new embedder became the champion, the DAG starts a rebuild, which is waited for."""
    for dag_id in ("rebuild_index", "refit_projection"):
        airflow.wait_for_dag(dag_id)
    airflow.unpause("rebuild_index")
    airflow.pause("refit_projection")
    before = search_index.live()
    run_id = airflow.trigger("refit_projection")
    airflow.unpause("refit_projection")
    state = airflow.wait_for_run("refit_projection", run_id, _shown("refit_projection", narrator))
    if not any(task.task_id == "rebuild_index" and task.state == "success" for task in state.tasks):
        narrator.say("the fit is the champion's own, or stays a candidate: the index stays as it is")
        return
    airflow.wait_for_run("rebuild_index", f"promoted__{run_id}", _shown("rebuild_index", narrator))
    live = search_index.require_live()
    was = f", no longer to {before.name}" if before else ""
    narrator.say(f"alias {search_index.alias} points to {live.name}{was}")


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
    sessions = sum(manifest.counts["evaluated"] for manifest in manifests)
    names = manifests[0].parameters["metrics"]
    means = {
        name: sum(m.parameters["metrics"][name] * m.counts["evaluated"] for m in manifests) / sessions for name in names
    }
    return DemoResult(settings, means, sessions, _a_query(lake, spec.windows))


def _a_query(lake: Lake, windows: Sequence[Window]) -> Path:
    """A photo that someone searched with and found something: of the last session with a tap."""
    window = windows[-1]
    image_root = lake.manifest(SESSIONS, window).image_root
    for batch in lake.read(SESSIONS, [window]):
        for row in batch.to_pylist():
            if any(row["tapped"]):
                return Path(f"{image_root}/{row['query_image_uri']}")
    raise LensError(f"no session of {window} has a tap: make the demo's catalog with more sessions")
