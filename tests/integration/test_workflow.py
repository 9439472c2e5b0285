"""Every DAG once, by the real scheduler, on a tiny marketplace: from listings to a live index that was evaluated.

The steps build on one another, as they do in production; they are one story, told in order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tiny import image_root, land, land_marketplace, land_sessions, listing, log_search, photo, take_photo

from listing_lens.demo.run import wait_until_followed
from listing_lens.errors import LensError
from listing_lens.finetuning.records import latest_comparison
from listing_lens.lake.dead_letters import DeadLetters
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.ledger import Ledger
from listing_lens.lake.records import Query, Session
from listing_lens.lake.searches import is_from_log
from listing_lens.lake.window import Window
from listing_lens.lake.windows import SESSIONS, Lake, evaluations
from listing_lens.registry import connect_registry
from listing_lens.search.builds import Builds, State
from listing_lens.search.index import Index, SearchIndex
from listing_lens.serving.listing_search import search_listings
from listing_lens.settings import Settings, load_settings
from listing_lens.stack.airflow_api import AirflowApi
from models.embedder import CANDIDATE, CHAMPION, MODEL
from models.registry import RegisteredEncoder

DAGS = Path(__file__).parents[2] / "dags"

_DAY = timedelta(days=1)
_TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
WINDOWS = (Window(_TODAY - 2 * _DAY, _TODAY - _DAY), Window(_TODAY - _DAY, _TODAY))


@pytest.fixture(scope="module")
def settings(stack_settings: Settings, airflow: AirflowApi) -> Settings:
    """The stack's settings, with the addresses that it has now."""
    return load_settings(**stack_settings.model_dump(exclude={"elasticsearch_url", "mlflow_url", "airflow_url"}))


@pytest.fixture(scope="module", autouse=True)
def at_rest_afterwards(airflow: AirflowApi) -> Iterator[None]:
    """Other tests promote on the same MLflow, and this Airflow would follow them."""
    yield
    dag_ids = [file.stem for file in DAGS.glob("*.py")]
    for dag_id in dag_ids:
        airflow.pause(dag_id)
    deadline = time.monotonic() + 300
    while under_way := [task for dag_id in dag_ids for task in running_tasks(airflow, dag_id)]:
        assert time.monotonic() < deadline, f"still running: {under_way}"
        time.sleep(1)


def running_tasks(airflow: AirflowApi, dag_id: str) -> list[str]:
    """The tasks that a worker has now or will have: those of a paused DAG that are not queued yet will not be."""
    under_way = [run for run in airflow.runs(dag_id) if run.state == "running"]
    tasks = [task for run in under_way for task in airflow.tasks(dag_id, run.run_id)]
    return [f"{dag_id}.{task.task_id}" for task in tasks if task.state in {"queued", "running"}]


@pytest.fixture(scope="module")
def lake(settings: Settings) -> Lake:
    """A marketplace of two days, and searches in which the photo's own item was tapped: on the first day one that the search
    service logged, on the second some that have landed as sessions, the last two of them in the evening."""
    lake = Lake(settings.lake)
    land_marketplace(lake, windows=WINDOWS)
    take_photo(lake, "query.jpg", seed=25)
    shown = tuple(f"m{n:03d}" for n in range(20, 30))
    logged, landed = (window.start + timedelta(hours=1) for window in WINDOWS)
    log_search(lake, logged, photo(25), shown, ["m025"])
    evening = WINDOWS[1].end - timedelta(hours=1)
    # Of an item to validate on, and of two to test on, as the split by ids has it.
    searches = (
        ("query", "m025", landed),
        ("m022", "m022", landed),
        ("m020", "m020", evening),
        ("m021", "m021", evening),
    )
    land_sessions(
        lake,
        WINDOWS[1],
        [
            Session(f"s{n}", at, Query((f"{query}.jpg",)), shown, tuple(item == tapped for item in shown))
            for n, (query, tapped, at) in enumerate(searches)
        ],
    )
    return lake


@pytest.fixture(scope="module")
def embedded(airflow: AirflowApi, lake: Lake) -> list[str]:
    """Backfilled windows: before there is any index."""
    airflow.wait_for_dag("embed_new_listings")
    backfill = airflow.create_backfill("embed_new_listings", WINDOWS[0].start, WINDOWS[1].start)
    airflow.unpause("embed_new_listings")
    state = airflow.wait_for_backfill("embed_new_listings", backfill)
    return [run.state for run in state.runs]


def runs_of(airflow: AirflowApi, dag_id: str) -> list[str]:
    return [run.run_id for run in airflow.runs(dag_id)]


@pytest.fixture(scope="module")
def live(airflow: AirflowApi, settings: Settings, embedded: list[str]) -> Index:
    """The index after a fit, its promotion, and the rebuild that followed."""
    for dag_id in ("rebuild_index", "rollback_index", "follow_champion"):
        airflow.wait_for_dag(dag_id)
        airflow.unpause(dag_id)
    airflow.wait_for_dag("refit_projection")
    known = runs_of(airflow, "follow_champion")
    run = airflow.trigger("refit_projection", {"promote": True})
    airflow.unpause("refit_projection")
    airflow.wait_for_run("refit_projection", run)
    return wait_until_followed(airflow, settings, known)


def test_windows_are_embedded_by_backfill(embedded: list[str]) -> None:
    assert embedded == ["success", "success"]


def test_a_promoted_fit_becomes_a_live_verified_index(settings: Settings, live: Index) -> None:
    assert connect_registry(settings).get(CHAMPION).card == live.card
    assert SearchIndex.connect(settings).counts(live.name) == {"searchable": 37, "removed": 2}


def test_the_promotion_is_kept_and_followed_by_hand_it_starts_nothing_more(
    airflow: AirflowApi, settings: Settings, live: Index
) -> None:
    champion = connect_registry(settings).get(CHAMPION)
    [move] = connect_registry(settings).moves(champion.version)
    # Scheduled or triggered: on its day, the weekly fit may come first.
    assert move.by in {f"airflow refit_projection {run}" for run in runs_of(airflow, "refit_projection")}
    before = runs_of(airflow, "rebuild_index")
    run = airflow.trigger("follow_champion")
    airflow.wait_for_run("follow_champion", run)
    assert {task.task_id: task.state for task in airflow.tasks("follow_champion", run)} == {
        "decide": "success",
        "rebuild_index": "skipped",
        "rollback_index": "skipped",
    }
    assert runs_of(airflow, "rebuild_index") == before


def test_a_photo_finds_its_listing(settings: Settings, lake: Lake, live: Index) -> None:
    result = search_listings([Path(image_root(lake), "m025.jpg")], "", 3, settings)
    assert result.index == live.name
    assert result.hits[0].item_id == "m025"


def test_sessions_are_evaluated_and_logged(airflow: AirflowApi, settings: Settings, lake: Lake, live: Index) -> None:
    airflow.wait_for_dag("evaluate_offline")
    backfill = airflow.create_backfill("evaluate_offline", WINDOWS[0].start, WINDOWS[1].start)
    airflow.unpause("evaluate_offline")
    airflow.wait_for_backfill("evaluate_offline", backfill)
    assert [is_from_log(lake.manifest(SESSIONS, window)) for window in WINDOWS] == [True, False]
    assert lake.windows(evaluations(live.card.space)) == list(WINDOWS)
    for window in WINDOWS:
        assert lake.manifest(evaluations(live.card.space), window).parameters["metrics"]["projected/precision@1"] == 1
    assert len(list((settings.home / "pages").glob("evaluation-*.html"))) == 2


def test_a_run_without_a_data_interval_is_refused_by_its_first_task(airflow: AirflowApi, embedded: list[str]) -> None:
    run = airflow.trigger("embed_new_listings")
    with pytest.raises(LensError, match="task require_window of embed_new_listings failed"):
        airflow.wait_for_run("embed_new_listings", run)
    states = {task.task_id: task.state for task in airflow.tasks("embed_new_listings", run)}
    # The last one carries the failure onward; nothing was embedded in between.
    assert states.pop("require_window") == states.pop("require_live_is_fed") == "failed"
    assert set(states.values()) == {"upstream_failed", "skipped"}


def test_the_live_index_is_verified(airflow: AirflowApi, live: Index) -> None:
    airflow.wait_for_dag("verify_live_index")
    run = airflow.trigger("verify_live_index")
    airflow.unpause("verify_live_index")
    airflow.wait_for_run("verify_live_index", run)


def test_dead_letters_are_tried_again_when_asked_to_and_reach_the_index(
    airflow: AirflowApi, lake: Lake, live: Index, settings: Settings
) -> None:
    letters = DeadLetters(Embeddings(lake, live.card.encoder_id))
    assert [letter.item_id for letter in letters.letters()] == ["m002"]
    airflow.wait_for_dag("redrive_dead_letters")
    take_photo(lake, "m002.jpg", seed=2)
    skipped = airflow.trigger("redrive_dead_letters")
    airflow.unpause("redrive_dead_letters")
    airflow.wait_for_run("redrive_dead_letters", skipped)
    states = {task.task_id: task.state for task in airflow.tasks("redrive_dead_letters", skipped)}
    assert states == {
        "find_due": "success",
        "redrive": "skipped",
        "load_live": "skipped",
        "find_other_indexes": "skipped",
        "load_others": "skipped",
        "require_live_is_fed": "success",
    }

    airflow.wait_for_run("redrive_dead_letters", airflow.trigger("redrive_dead_letters", {"all": True}))
    assert list(letters.letters()) == []
    assert list(SearchIndex.connect(settings).versions(live.name, ["m002"])) == ["m002"]


def test_the_lake_is_compacted(airflow: AirflowApi, lake: Lake, live: Index) -> None:
    items = Embeddings(lake, live.card.encoder_id).items
    rows = items.open().count_rows()
    airflow.wait_for_dag("compact_lake")
    run = airflow.trigger("compact_lake")
    airflow.unpause("compact_lake")
    airflow.wait_for_run("compact_lake", run)
    assert len(items.open().get_fragments()) == 1
    assert items.open().count_rows() == rows


def test_an_unknown_model_fails_the_rebuild_and_moves_nothing(
    airflow: AirflowApi, settings: Settings, live: Index
) -> None:
    before = SearchIndex.connect(settings).require_live()
    with pytest.raises(LensError, match="422|does not match|pattern"):
        airflow.trigger("rebuild_index", {"model": "No Such Model!"})
    assert SearchIndex.connect(settings).require_live() == before


@pytest.fixture(scope="module")
def trained(airflow: AirflowApi, settings: Settings, lake: Lake) -> RegisteredEncoder:
    """An encoder that was fine-tuned on the marketplace's pairs: the candidate."""
    airflow.wait_for_dag("finetune_encoder")
    # Any encoder ranks these photos well, and the titles say nothing of them: of eleven titles, some validation finds one more
    # by chance, which is all that it takes for a new encoder.
    recipe = {"epochs": 8, "batch_size": 8, "precision": "no", "learning_rate": 3e-4}
    recipe |= {"judged_by": "titles/recall@5", "validate_every": 1, "patience": 100}
    shares = {"validation_share": 0.3, "test_share": 0.3}
    run = airflow.trigger(
        "finetune_encoder", {"pairs": 100, "sessions": 10, **shares, "image_side": 112, "recipe": recipe}
    )
    airflow.unpause("finetune_encoder")
    airflow.wait_for_run("finetune_encoder", run)
    return connect_registry(settings).get_encoder(CANDIDATE)


def test_an_encoder_is_fine_tuned_compared_and_registered(
    settings: Settings, lake: Lake, trained: RegisteredEncoder
) -> None:
    assert trained.parent_source == settings.encoder
    assert trained.source.startswith(f"{lake.root}/encoders/")
    rows = latest_comparison(lake).rows
    assert [row.role for row in rows if row.variant == "embedding"] == ["fine-tuned", "parent", "compared"]
    assert rows[0].encoder_id == trained.encoder_id


def test_a_new_encoder_promoted_in_mlflow_goes_live_and_new_listings_reach_both_indexes(
    airflow: AirflowApi, settings: Settings, lake: Lake, live: Index, trained: RegisteredEncoder
) -> None:
    search_index, registry = SearchIndex.connect(settings), connect_registry(settings)
    source, before = f"models:/listing-encoder@{CANDIDATE}", registry.get(CHAMPION).version
    # Only one of the two days: the rebuild embeds the other itself.
    made = airflow.create_backfill(
        "embed_new_listings", WINDOWS[0].start, WINDOWS[0].start, conf={"encoder": source}, reprocess="completed"
    )
    airflow.wait_for_backfill("embed_new_listings", made)
    ledger = Ledger(Embeddings(lake, trained.encoder_id))
    assert [(line.window, line.state) for line in ledger.lines().values()] == [(WINDOWS[0], "embedded")]

    airflow.wait_for_run("refit_projection", airflow.trigger("refit_projection", {"encoder": source}))
    after = _move_champion(airflow, settings, registry.get(CANDIDATE).version)
    assert after.card.encoder_id == trained.encoder_id
    assert [(line.window, line.state) for line in ledger.lines().values()] == [(w, "embedded") for w in WINDOWS]
    assert search_index.counts(after.name) == search_index.counts(live.name)

    # A correction of the last day reaches the live index and those before, each from its own encoder.
    take_photo(lake, "late.jpg", 99)
    land(lake, WINDOWS[1], [listing("late", WINDOWS[1])])
    made = airflow.create_backfill("embed_new_listings", WINDOWS[1].start, WINDOWS[1].start, reprocess="completed")
    airflow.wait_for_backfill("embed_new_listings", made)
    for index in (live, after):
        assert list(search_index.versions(index.name, ["late"])) == ["late"]

    # The first index was kept, and is as it would be had it stayed live.
    assert _move_champion(airflow, settings, before) == live
    assert {build.index: build.state for build in Builds(search_index).all()} == {
        after.name: State.KEPT,
        live.name: State.LIVE,
    }


def _move_champion(airflow: AirflowApi, settings: Settings, version: int) -> Index:
    """Move the alias as MLflow's page does. Returns the index that is live once that was followed."""
    registry = connect_registry(settings)
    known, over = runs_of(airflow, "follow_champion"), registry.get(CHAMPION).version
    registry.client.set_registered_model_alias(MODEL, CHAMPION, str(version))
    live = wait_until_followed(airflow, settings, known)
    assert live.card == registry.get(str(version)).card
    newest = registry.moves(version)[0]
    assert (newest.by, newest.over) == ("MLflow", over)
    return live
