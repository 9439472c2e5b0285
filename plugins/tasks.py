"""Tasks that several DAGs are wired from. What is heavy to import is imported when a task runs."""

from __future__ import annotations

from datetime import UTC, datetime, time
from typing import Any

from airflow.sdk import Param, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException

from listing_lens.errors import LensError
from listing_lens.lake.window import Window
from listing_lens.settings import load_settings

WINDOW_ARGUMENTS = {"window_start": "{{ data_interval_start }}", "window_end": "{{ data_interval_end }}"}

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


@task(retries=0)
def require_window() -> str:
    """Refuse a run without a data interval, or with an empty one, before anything is computed. Returns its name."""
    context = get_current_context()
    try:
        return _window_of(context).name
    except LensError as err:
        raise AirflowFailException(str(err)) from err


@task
def encoders_in_use(encoder: str | None) -> list[dict[str, str]]:
    """Find the encoders that the run's window is embedded by: the one asked for, or those of every index and LENS_ENCODER.

    Returns the arguments of `embed_listings` for each.
    """
    from listing_lens.embedding import sources as encoders
    from listing_lens.lake.windows import LISTINGS, Lake

    settings = load_settings()
    window = _window_of(get_current_context())
    # First the window, then the indexes: an index that is created after both finds the window landed, and its rebuild
    # embeds it.
    Lake(settings.lake).covering(LISTINGS, window)
    sources = [encoders.resolve_encoder(encoder, settings)] if encoder else encoders.encoders_in_use(settings)
    bounds = {"window_start": window.start.isoformat(), "window_end": window.end.isoformat()}
    return [bounds | {"encoder": source} for source in sources]


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
    sources = [encoders.resolve_encoder(encoder, settings)] if encoder else encoders.encoders_in_use(settings)
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
