"""Tasks that several DAGs are wired from. What is heavy to import is imported when a task runs."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from typing import Any

from airflow.sdk import BaseOperator, Param, XComArg, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from listing_lens.errors import LensError
from listing_lens.lake.window import Window
from listing_lens.settings import load_settings
from plugins.operators.beam_job import BeamJobOperator, BuildStepOperator

WINDOW_ARGUMENTS = {"window_start": "{{ data_interval_start }}", "window_end": "{{ data_interval_end }}"}

# The task that feeds the live index.
LOAD_LIVE = "load_live"

# One name a run, the same in every try: it names a fit or a build.
RUN_NAME = "{{ dag_run.run_after.strftime('%Y%m%dt%H%M%S') }}"


def first_day() -> datetime:
    """The day from which on there are listings (`LENS_EMBED_START`): no DAG has anything to do before it."""
    return datetime.combine(load_settings().embed_start, time(), UTC)


def embedder_param(purpose: str) -> Param:
    """The parameter of a DAG that works with one embedder; `purpose` ends its description."""
    return Param(
        "champion",
        type="string",
        pattern=r"^([0-9]+|[a-z][a-z0-9_-]*)$",
        description=f"The version or alias of listing-embedder in MLflow {purpose}.",
    )


def optional_param(of: str, *, description: str, **bounds: Any) -> Param:
    """A parameter of a JSON Schema type, within bounds in its words, that may be left empty."""
    return Param(None, type=["null", of], description=description, **bounds)


def encoder_param(purpose: str) -> Param:
    """The parameter of a DAG that may work with another encoder; `purpose` begins its description."""
    return optional_param(
        "string",
        minLength=1,
        description=f"{purpose}: a folder, a hub's id, a gs:// address, or MLflow's models:/listing-encoder/VERSION.",
    )


def wait_param() -> Param:
    """Whether a run waits for another build to end, or fails at once."""
    return Param(True, type="boolean", description="Wait while another build is running, for 11 hours; otherwise fail.")


def force_checks_param() -> Param:
    """The checks of the verification that may fail."""
    return Param(
        [],
        type="array",
        items={"type": "string"},
        description="Checks of the verification that may fail, by their names, e.g. size. They are recorded.",
    )


def force_swap_param() -> Param:
    """The fences of the swap that are passed over."""
    return Param(
        [],
        type="array",
        items={"type": "string", "enum": ["live", "champion"]},
        description=(
            "Swap also if the alias (live) or the champion was moved since the build began. They are recorded."
        ),
    )


@task(retries=0)
def require_window() -> str:
    """Refuse a run without a data interval, or with an empty one, before anything is computed. Returns its name."""
    context = get_current_context()
    try:
        return _window_of(context).name
    except LensError as err:
        raise AirflowFailException(str(err)) from err


@task.sensor(mode="reschedule", poke_interval=60)
def land_listings() -> bool:
    """Land the run's window from the listings that were put to the search service, where that is what feeds the lake.

    Waits until no listing of the window can come any more.
    """
    from listing_lens.indexing.listing_log import LANDS_AFTER, ListingLog
    from listing_lens.lake.windows import Lake

    settings, now, window = load_settings(), datetime.now(UTC), _window_of(get_current_context())
    if settings.listings_feed == "import":
        return True
    if now < window.end + LANDS_AFTER:
        return False
    ListingLog.of(Lake(settings.lake)).land(window, now)
    return True


@task.sensor(mode="reschedule", poke_interval=300)
def wait_for_log() -> bool:
    """Wait until what buyers did with the window's last results is in the log of searches too.

    Skips the landing of sessions if they came from elsewhere, or nothing was logged.
    """
    from listing_lens.lake.searches import GRACE, why_not_to_land
    from listing_lens.lake.windows import Lake

    window = _window_of(get_current_context())
    if why := why_not_to_land(Lake(load_settings().lake), window):
        raise AirflowSkipException(why)
    return datetime.now(UTC) >= window.end + GRACE


@task
def forget_searches() -> dict[str, int]:
    """Forget searches that are older than LENS_SEARCH_LOG_DAYS. Returns how many days of the log, and windows of sessions."""
    from dataclasses import asdict

    from listing_lens.lake import searches
    from listing_lens.lake.windows import Lake

    settings = load_settings()
    lake = Lake(settings.lake)
    lake.check()
    return asdict(searches.forget_searches(lake, searches.kept_since(settings.search_log_days, datetime.now(UTC))))


@task
def find_encoder(encoder: str | None) -> dict[str, str]:
    """Wait for the run's window, and find the encoder that must embed it: the one asked for, or the live index's.

    Returns the arguments of `embed_listings`.
    """
    from listing_lens.embedding import sources as encoders
    from listing_lens.lake.windows import LISTINGS, Lake

    settings = load_settings()
    window = _window_of(get_current_context())
    Lake(settings.lake).covering(LISTINGS, window)
    source = encoders.resolve_encoder(encoder, settings) if encoder else encoders.encoders_in_use(settings).required
    return _embedding_of(window, source)


@task
def find_other_encoders(encoder: str | None, embedded_by: str) -> list[dict[str, str]]:
    """Find the other encoders that embed the window: those of every index that is fed, and LENS_ENCODER.

    Returns the arguments of `embed_listings` for each; none if one encoder was asked for.
    """
    from listing_lens.embedding import sources as encoders

    if encoder:
        return []
    window = _window_of(get_current_context())
    # The window landed before: an index that is created from now on finds it landed, and its rebuild embeds it.
    in_use = encoders.encoders_in_use(load_settings()).all
    return [_embedding_of(window, source) for source in in_use if source != embedded_by]


def _embedding_of(window: Window, source: str) -> dict[str, str]:
    return {"window_start": window.start.isoformat(), "window_end": window.end.isoformat(), "encoder": source}


@task
def find_due(encoder: str | None, every: bool) -> list[dict[str, Any]]:
    """Find the encoders that have dead letters to try now: of the one asked for, or of those in use.

    Returns the arguments of `redrive_dead_letters` for each; none when nothing is due.
    """
    from listing_lens.embedding import sources as encoders
    from listing_lens.lake.dead_letters import DeadLetters
    from listing_lens.lake.embeddings import Embeddings
    from listing_lens.lake.windows import Lake
    from models.encoders.files import identify

    settings, now = load_settings(), datetime.now(UTC)
    lake = Lake(settings.lake)
    lake.check()
    sources = [encoders.resolve_encoder(encoder, settings)] if encoder else encoders.encoders_in_use(settings).all
    found = []
    for source in sources:
        if DeadLetters(Embeddings(lake, identify(source))).to_try(now, every=every):
            found.append({"encoder": source, "all": every})
    return found


@task
def resolve_embedder(model: str) -> dict[str, Any]:
    """Look up a version or alias of listing-embedder in MLflow. Returns its version, card and encoder's source."""
    from listing_lens.registry import connect_registry

    embedder = connect_registry(load_settings()).get(str(model))
    card = embedder.card.model_dump()
    return {"version": embedder.version, "card": card, "encoder_source": card["encoder_source"]}


# ---- feeding indexes -------------------------------------------------------------------------------------------------


@task(trigger_rule="all_done")
def find_other_indexes(encoder: str | None) -> list[dict[str, str]]:
    """Find the indexes that receive new listings besides the live one. Returns the arguments of `load_index` for each.

    One that is being filled for the first time is left to its build: a load would read the whole table beside it. The live
    one is among them if the alias has moved to it since the load of the live index, which it may lack.
    """
    if _state_of(LOAD_LIVE) in ("skipped", "upstream_failed"):
        raise AirflowSkipException("nothing was embedded that any index lacks")
    from listing_lens.embedding.sources import resolve_encoder
    from listing_lens.lake.embeddings import Embeddings
    from listing_lens.lake.windows import Lake
    from listing_lens.search.builds import Builds
    from listing_lens.search.index import Index, SearchIndex
    from listing_lens.search.loads import Loads
    from models.encoders.files import identify

    settings = load_settings()
    search_index, lake = SearchIndex.connect(settings), Lake(settings.lake)
    live, only = search_index.live(), identify(resolve_encoder(encoder, settings)) if encoder else None

    def is_due(index: Index) -> bool:
        reached = Loads(search_index, index).reached()
        return reached > 0 and (index != live or reached < Embeddings(lake, index.card.encoder_id).require())

    return [
        {"index": index.name}
        for index in Builds(search_index).fed()
        if only in (None, index.card.encoder_id) and is_due(index)
    ]


@task(trigger_rule="all_done")
def require_live_is_fed() -> None:
    """Let the run end as the load of the live index did: what failed for another index stays red, but does not fail the run."""
    state = _state_of(LOAD_LIVE)
    if state not in ("success", "skipped"):
        raise AirflowFailException(f"task {LOAD_LIVE} is {state}: the live index lacks listings; clear it to go on")


def _state_of(task_id: str) -> str | None:
    run: Any = get_current_context()["ti"]
    states = run.get_task_states(run.dag_id, task_ids=[task_id], run_ids=[run.run_id])
    state: str | None = states.get(run.run_id, {}).get(task_id)
    return state


def feed_indexes(encoder: str, window: dict[str, str] | None = None) -> tuple[BaseOperator, XComArg]:
    """The tasks that bring what was embedded into every index: the live one, and then the others, which cannot fail the run.

    Args:
        encoder: the encoder whose indexes alone are fed, as a template; empty is every one.
        window: the arguments that name the window that the live index must receive.

    Returns:
        The first task, and the one that finds the other indexes: what must have ended before that goes between the two.
    """
    live = BeamJobOperator(
        task_id=LOAD_LIVE, job="load_index", arguments={**(window or {}), "live": True, "encoder": encoder}
    )
    others = find_other_indexes(encoder)
    load_others = BeamJobOperator.partial(task_id="load_others", job="load_index").expand(arguments=others)
    live >> others
    [live, load_others] >> require_live_is_fed()
    return live, others


# ---- builds ----------------------------------------------------------------------------------------------------------

# How long a run waits for another build to end.
_PATIENCE = timedelta(hours=11)


@task
def begin_build(model: str, afresh: bool, unless_live: bool, wait: bool) -> dict[str, str]:
    """Take the lock and create the index of a build, or find the one to go on with. Returns it, and its encoder's source.

    Skips what follows if the embedder is live already, and nothing is to be done then.
    """
    from listing_lens.search import lifecycle
    from listing_lens.search.builds import AlreadyLiveError

    try:
        build = lifecycle.begin_build(
            str(model),
            load_settings(),
            owner=this_run(),
            because=f"rebuild for {model}",
            afresh=afresh,
            unless_live=unless_live,
            wait=_PATIENCE if wait else timedelta(0),
        )
    except AlreadyLiveError as err:
        raise AirflowSkipException(str(err)) from err
    return {"index": build.index, "encoder_source": build.card.encoder_source}


@task
def begin_rollback(index: str | None, wait: bool) -> dict[str, str]:
    """Take the lock for a kept build. Returns its index and its encoder's source."""
    from listing_lens.search import lifecycle

    build = lifecycle.begin_rollback(
        index, load_settings(), owner=this_run(), because="rollback", wait=_PATIENCE if wait else timedelta(0)
    )
    return {"index": build.index, "encoder_source": build.card.encoder_source}


def embed_missing(build: XComArg) -> BaseOperator:
    """The task that embeds what has landed and a build's encoder has not embedded yet."""
    return BuildStepOperator(
        task_id="embed_missing",
        job="embed_listings",
        index=build["index"],
        arguments={"each_landed": True, "encoder": build["encoder_source"]},
    )


def load_build(task_id: str, build: XComArg) -> BaseOperator:
    """A task that loads what a build's index lacks of its encoder's table."""
    index = build["index"]
    return BuildStepOperator(task_id=task_id, job="load_index", index=index, arguments={"index": index})


def catch_up_and_verify(build: XComArg) -> tuple[BaseOperator, BaseOperator]:
    """The tasks that bring a build up to date and prove it; what is embedded or told of meanwhile comes in before the alias may
    move.

    Returns:
        The first and the last of them.
    """
    index = build["index"]
    catch_up = load_build("catch_up", build)
    verify = BuildStepOperator(
        task_id="verify",
        job="verify_index",
        index=index,
        arguments={"index": index, "force": "{{ params.force_checks }}"},
    )
    again = load_build("catch_up_again", build)
    # After the loads: what the table has by now need not be embedded once more.
    replay = BuildStepOperator(task_id="replay", job="replay_listings", index=index, arguments={"index": index})
    catch_up >> verify >> log_verification(index) >> again >> replay
    return catch_up, replay


@task
def finish_load(index: str) -> str | None:
    """Make what was loaded visible to searches, and start to merge segments if LENS_INDEX_SEGMENTS asks for it.

    Returns the merge's task in Elasticsearch; None without one.
    """
    from listing_lens.search import lifecycle

    return lifecycle.finish_load(index, load_settings())


@task.sensor(mode="reschedule", poke_interval=15)
def wait_for_merge(index: str, merge: str | None) -> bool:
    """Wait until the segments are merged."""
    from listing_lens.search import lifecycle

    return lifecycle.is_merged(index, merge, load_settings())


@task
def find_live() -> str:
    """Find the live index. Returns its name; skips what follows if there is none yet."""
    from listing_lens.search.index import SearchIndex

    live = SearchIndex.connect(load_settings()).live()
    if live is None:
        raise AirflowSkipException("the alias points to no index yet")
    return live.name


@task
def log_verification(index: str) -> str:
    """Log the build's verification to MLflow, with its page. Returns the page's path."""
    from listing_lens import registration
    from listing_lens.search.lifecycle import connect_builds

    settings = load_settings()
    verification = connect_builds(settings).get(index).verification
    if verification is None:
        raise LensError(f"index {index} was not verified: clear the task verify")
    return str(registration.log_verification(verification, settings))


@task
def promote_build(index: str) -> None:
    """Make the embedder of a build the champion: the champion is what should serve."""
    from listing_lens import registration

    registration.promote_build(index, load_settings(), by=this_run())


@task
def swap(index: str, force: list[str]) -> str | None:
    """Point the alias to the build's index, away from any other, in one request. Returns the index that was live before."""
    from listing_lens.search import lifecycle

    return lifecycle.swap_in(index, load_settings(), force=force)


@task
def retire() -> list[str]:
    """Remove the indexes that nothing needs any more. Returns their names."""
    from listing_lens.search import lifecycle

    return lifecycle.retire(load_settings())


# It runs if any task before it failed for good; a build that went live is left alone.
@task(trigger_rule="one_failed")
def give_up(build: dict[str, str] | None) -> None:
    """End the build without success, so that the lock is free, and nothing feeds its index any more."""
    from listing_lens.search import lifecycle

    if build:
        lifecycle.give_up(build["index"], load_settings(), because=f"{this_run()} failed")


# ---- embedders -------------------------------------------------------------------------------------------------------


@task
def previous_projection(name: str) -> str | None:
    """Find the projection that a fit is compared with: the champion's, if of the same encoder. Returns its id or None."""
    from listing_lens import registration

    return registration.previous_projection(name, load_settings())


@task
def register_fit(name: str) -> int:
    """Register the embedder that a fit made possible as the candidate. Returns its version."""
    from listing_lens import registration

    return registration.register_fit(name, load_settings())


@task
def promote(version: int, asked: bool) -> bool:
    """Make a version the champion if that was asked for, or if there is none yet. Returns whether it is the champion now.

    Nothing is started here: `follow_champion` watches the alias, whoever moves it.
    """
    from listing_lens import registration

    return registration.promote(version, asked=asked, settings=load_settings(), by=this_run())


def this_run() -> str:
    """The run that a task is of, for records of who did something."""
    dag_run = get_current_context()["dag_run"]
    return f"airflow {dag_run.dag_id} {dag_run.run_id}"


@task
def log_evaluation(embedder: dict[str, Any]) -> str:
    """Log the window's evaluation to MLflow, with its figure and page. Returns the page's path."""
    from listing_lens import registration
    from models.embedder import EmbedderCard
    from models.registry import RegisteredEmbedder

    registered = RegisteredEmbedder(embedder["version"], EmbedderCard.model_validate(embedder["card"]))
    return str(registration.log_evaluation(_window_of(get_current_context()), registered, load_settings()))


def _window_of(context: Any) -> Window:
    bounds: list[datetime | None] = [context.get("data_interval_start"), context.get("data_interval_end")]
    return Window.parse(*(bound.isoformat() if bound else None for bound in bounds))
