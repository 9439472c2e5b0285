"""The steps between jobs, for the terminal and for Airflow alike: what a fit or an evaluation leaves becomes a record."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from listing_lens.finetunes import load_finetune
from listing_lens.lake import Lake, evaluations
from listing_lens.pages import evaluation_page
from listing_lens.projections import load_fit, load_projection
from listing_lens.search_index import SearchIndex
from listing_lens.settings import Settings, missing
from listing_lens.window import Window
from models import figures
from models.embedder import CHAMPION
from models.encoder_files import encoder_folder
from models.registry import RegisteredEmbedder, Registry

VARIANTS = {"embedding": "encoder alone", "projected": "with projection"}


def connect_registry(settings: Settings) -> Registry:
    """Raises LensError when no MLflow server is configured or it does not answer."""
    url = settings.mlflow_url or missing("mlflow_url", "set it, or start the local stack with `lens up`")
    return Registry.connect(url)


def register_fit(name: str, settings: Settings) -> int:
    """Register the embedder that a fit made possible as the candidate. Returns its version."""
    lake = Lake(settings.lake)
    fit = load_fit(lake, name)
    projection = load_projection(lake, fit.card.projection_id)
    figure = figures.explained_variance(projection)
    return connect_registry(settings).register(fit.card, projection, fit.windows, figure, name=name)


def register_finetune(name: str, settings: Settings) -> int:
    """Register the encoder that a fine-tuning made as the candidate. Returns its version."""
    finetune = load_finetune(Lake(settings.lake), name)
    registry = connect_registry(settings)
    run_id = finetune.mlflow_run_id
    if run_id is None:
        # It was trained where MLflow could not be reached: its version needs a run all the same.
        run_id = registry.start_finetuning(name, finetune.recipe, key=finetune.encoder_id)
        registry.log_metrics(run_id, finetune.metrics, finetune.steps)
        registry.end(run_id)
    return registry.register_encoder(
        run_id,
        encoder_folder(finetune.encoder_source),
        encoder_id=finetune.encoder_id,
        source=finetune.encoder_source,
        parent_id=finetune.parent_id,
        parent_source=finetune.parent_source,
        parent_revision=finetune.parent_revision,
        pairs_fingerprint=finetune.pairs_fingerprint,
    )


def promote_encoder(version: int, settings: Settings) -> None:
    """Make a version of listing-encoder the champion, since the run that registered it was asked to."""
    connect_registry(settings).promote_encoder(
        version, reason="asked for by the run that trained it", now=datetime.now(UTC)
    )


def promote(version: int, *, asked: bool, settings: Settings) -> bool:
    """Make a version the champion when that was asked for, or when there is none yet. Returns whether it is now."""
    registry = connect_registry(settings)
    champion = registry.get(CHAMPION).version if registry.has(CHAMPION) else None
    if champion != version and (asked or champion is None):
        reason = "asked for by the run that fitted it" if asked else "there was no champion"
        registry.promote(version, reason=reason, now=datetime.now(UTC))
        champion = version
    return champion == version


def is_live(version: int, settings: Settings) -> bool:
    """Whether the live index holds vectors of a version's space."""
    live = SearchIndex.connect(settings).live()
    return live is not None and live.card.space == connect_registry(settings).get(str(version)).card.space


def log_evaluation(window: Window, embedder: RegisteredEmbedder, settings: Settings) -> Path:
    """Log an evaluation that the lake holds to MLflow, and write its page. Returns the page's path."""
    manifest = Lake(settings.lake).manifest(evaluations(embedder.card.space), window)
    means = manifest.parameters["metrics"]
    figure = figures.metrics_by_k(means, VARIANTS)
    page = evaluation_page(window=window, embedder=embedder, counts=manifest.counts, means=means, figure=figure)
    connect_registry(settings).log_evaluation(
        embedder, window=window.name, counts=manifest.counts, means=means, figure=figure, page=page
    )
    path = settings.home / "pages" / f"evaluation-{window.name}-v{embedder.version}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path
