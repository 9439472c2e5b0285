"""Every DAG once, by the real scheduler, on a tiny marketplace: from listings to a live index that was evaluated.

The steps build on one another, as they do in production; they are one story, told in order.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tiny import image_root, land_marketplace, land_sessions, take_photo

from listing_lens.errors import LensError
from listing_lens.lake import Lake, evaluations
from listing_lens.records import Session
from listing_lens.search_index import Index, SearchIndex
from listing_lens.settings import Settings, load_settings
from listing_lens.stack.airflow_api import AirflowApi
from listing_lens.visual_search import search_by_photo
from listing_lens.window import Window
from listing_lens.workflow import connect_registry
from models.embedder import CHAMPION

_DAY = timedelta(days=1)
_TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
WINDOWS = (Window(_TODAY - 2 * _DAY, _TODAY - _DAY), Window(_TODAY - _DAY, _TODAY))


@pytest.fixture(scope="module")
def settings(stack_settings: Settings, airflow: AirflowApi) -> Settings:
    """The stack's settings, with the addresses that it has now."""
    return load_settings(**stack_settings.model_dump(exclude={"elasticsearch_url", "mlflow_url", "airflow_url"}))


@pytest.fixture(scope="module")
def lake(settings: Settings) -> Lake:
    """A marketplace of two days, and sessions in which the photo's own item was tapped."""
    lake = Lake(settings.lake)
    land_marketplace(lake, windows=WINDOWS)
    take_photo(lake, "query.jpg", seed=25)
    shown = tuple(f"m{n:03d}" for n in range(20, 30))
    for window in WINDOWS:
        session = Session("s", window.start + timedelta(hours=1), "query.jpg", shown, tuple(i == "m025" for i in shown))
        land_sessions(lake, window, [session])
    return lake


@pytest.fixture(scope="module")
def embedded(airflow: AirflowApi, lake: Lake) -> list[str]:
    """Backfilled windows: before there is any index."""
    airflow.wait_for_dag("embed_new_listings")
    backfill = airflow.create_backfill("embed_new_listings", WINDOWS[0].start, WINDOWS[1].start)
    airflow.unpause("embed_new_listings")
    state = airflow.wait_for_backfill("embed_new_listings", backfill)
    return [run.state for run in state.runs]


@pytest.fixture(scope="module")
def live(airflow: AirflowApi, settings: Settings, embedded: list[str]) -> Index:
    """The index after a fit, its promotion, and the rebuild that this started."""
    airflow.unpause("rebuild_index")
    airflow.wait_for_dag("refit_projection")
    run = airflow.trigger("refit_projection", {"promote": True})
    airflow.unpause("refit_projection")
    airflow.wait_for_run("refit_projection", run)
    airflow.wait_for_run("rebuild_index", f"promoted__{run}")
    return SearchIndex.connect(settings).require_live()


def test_windows_are_embedded_by_backfill(embedded: list[str]) -> None:
    assert embedded == ["success", "success"]


def test_a_promoted_fit_becomes_a_live_verified_index(settings: Settings, live: Index) -> None:
    assert connect_registry(settings).get(CHAMPION).card == live.card
    assert SearchIndex.connect(settings).counts(live.name) == {"searchable": 37, "removed": 2}


def test_a_photo_finds_its_listing(settings: Settings, lake: Lake, live: Index) -> None:
    result = search_by_photo(Path(image_root(lake), "m025.jpg"), 3, settings)
    assert result.index == live
    assert result.hits[0].item_id == "m025"


def test_sessions_are_evaluated_and_logged(airflow: AirflowApi, settings: Settings, lake: Lake, live: Index) -> None:
    airflow.wait_for_dag("evaluate_offline")
    backfill = airflow.create_backfill("evaluate_offline", WINDOWS[0].start, WINDOWS[1].start)
    airflow.unpause("evaluate_offline")
    airflow.wait_for_backfill("evaluate_offline", backfill)
    assert lake.windows(evaluations(live.card.space)) == list(WINDOWS)
    assert lake.manifest(evaluations(live.card.space), WINDOWS[1]).parameters["metrics"]["projected/precision@1"] == 1
    assert len(list((settings.home / "pages").glob("evaluation-*.html"))) == 2


def test_a_run_without_a_data_interval_is_refused_by_its_first_task(airflow: AirflowApi, embedded: list[str]) -> None:
    run = airflow.trigger("embed_new_listings")
    with pytest.raises(LensError, match="task require_window of embed_new_listings failed"):
        airflow.wait_for_run("embed_new_listings", run)
    states = {task.task_id: task.state for task in airflow.tasks("embed_new_listings", run)}
    assert states == {"require_window": "failed", "embed": "upstream_failed", "load_indexes": "upstream_failed"}


def test_a_second_rebuild_moves_the_alias_and_keeps_the_index_before(
    airflow: AirflowApi, settings: Settings, live: Index
) -> None:
    run = airflow.trigger("rebuild_index", {"model": "champion"})
    airflow.wait_for_run("rebuild_index", run)
    search_index = SearchIndex.connect(settings)
    assert search_index.require_live().name != live.name
    assert live.name in [index.name for index in search_index.all()]


def test_an_unknown_model_fails_the_rebuild_and_moves_nothing(
    airflow: AirflowApi, settings: Settings, live: Index
) -> None:
    before = SearchIndex.connect(settings).require_live()
    with pytest.raises(LensError, match="422|does not match|pattern"):
        airflow.trigger("rebuild_index", {"model": "No Such Model!"})
    assert SearchIndex.connect(settings).require_live() == before
