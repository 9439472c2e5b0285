"""Turns what a fit, a fine-tuning, an evaluation or a verification left into records in MLflow, for the terminal and Airflow."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from getpass import getuser
from pathlib import Path
from socket import gethostname

from listing_lens.comparison.records import HEADLINE as RANKING_HEADLINE
from listing_lens.comparison.records import Comparison
from listing_lens.errors import LensError
from listing_lens.finetuning.records import load_comparison, load_finetune
from listing_lens.lake.evaluations import KIND_TITLES, kinds_evaluated, means_of
from listing_lens.lake.fits import HEADLINE, Assessment, load_assessment, load_fit, load_projection, projection_exists
from listing_lens.lake.window import Window
from listing_lens.lake.windows import Lake, evaluations
from listing_lens.registry import connect_registry
from listing_lens.search.builds import State
from listing_lens.search.index import Index
from listing_lens.search.lifecycle import Move, connect_builds, require_in_reach, what_follows
from listing_lens.search.verification import Verification
from listing_lens.serving.pages import evaluation_page, verification_page
from listing_lens.settings import Settings
from models import figures
from models.encoders.files import encoder_folder
from models.projection import prefix_dims
from models.registry import PromotionMove, RegisteredEmbedder

logger = logging.getLogger(__name__)

VARIANTS = {"embedding": "encoder alone", "projected": "with projection"}


def register_fit(name: str, settings: Settings) -> int:
    """Register a fit's embedder as the candidate, with its assessment if there is one. Returns its version."""
    lake = Lake(settings.lake)
    fit = load_fit(lake, name)
    projection = load_projection(lake, fit.card.projection_id, fit.card.encoder_id)
    assessment = load_assessment(lake, name)
    if assessment is not None and assessment.fitted.projection_id != projection.projection_id:
        raise LensError(
            f"the assessment of {name!r} is of projection {assessment.fitted.projection_id}, of an earlier fit of that name, "
            f"not of {projection.projection_id}: assess it again"
        )
    pictures = {"explained_variance": figures.explained_variance(projection)}
    before = assessment.change.before if assessment and assessment.change else None
    if assessment is not None:
        pictures["recall_by_dims"] = figures.recall_by_dims(
            assessment.fitted.recall, before.recall if before else None, assessment.centred
        )
    return connect_registry(settings).register(
        fit.card,
        projection,
        version=fit.version,
        within=fit.within,
        name=name,
        share=fit.share,
        metrics=_metrics_of(assessment) if assessment else {},
        tags={"projection_before": before.projection_id if before else "none"},
        description=assessment.advice if assessment else "This fit was not assessed.",
        figures=pictures,
    )


def previous_projection(name: str, settings: Settings) -> str | None:
    """The id of the champion's projection if a fit can be compared with it: of the same encoder, and in the lake."""
    lake, registry = Lake(settings.lake), connect_registry(settings)
    encoder_id = load_fit(lake, name).card.encoder_id
    champion = registry.champion()
    if champion is None or champion.card.encoder_id != encoder_id:
        return None
    projection_id = champion.card.projection_id
    if not projection_exists(lake, projection_id):
        logger.warning("the champion's projection %s is not in the lake: nothing to compare", projection_id)
        return None
    return projection_id


def register_finetune(name: str, settings: Settings) -> int | None:
    """Register a fine-tuned encoder as the candidate, with what its comparison found.

    Returns:
        Its version; None if no validation was better than the parent's, so that there is no new encoder.

    Raises:
        LensError: it has not been trained, or not been compared on unseen test sessions.
    """
    lake = Lake(settings.lake)
    finetune = load_finetune(lake, name)
    if finetune.best_step == 0:
        return None
    comparison = load_comparison(lake, name)
    compared = comparison.row("fine-tuned")
    if compared is None or compared.encoder_id != finetune.encoder_id:
        raise LensError(
            f"the comparison of {name!r} is not of {finetune.encoder_id}, but of an earlier training of that name: "
            f"run `python -m listing_lens.finetuning compare --name {name}`"
        )
    description = comparison.headline
    registry = connect_registry(settings)
    run_id = finetune.mlflow_run_id
    if run_id is None:
        # It was trained without MLflow, but its version needs a run.
        run_id = registry.start_finetuning(name, finetune.recipe, key=finetune.encoder_id)
        registry.log_metrics(run_id, finetune.metrics, finetune.steps)
        registry.end(run_id)
    registry.log_metrics(run_id, _compared_metrics(comparison))
    return registry.register_encoder(
        run_id,
        encoder_folder(finetune.encoder_source),
        encoder_id=finetune.encoder_id,
        source=finetune.encoder_source,
        parent_id=finetune.parent_id,
        parent_source=finetune.parent_source,
        parent_revision=finetune.parent_revision,
        pairs_fingerprint=finetune.pairs_fingerprint,
        description=description,
    )


def promote_encoder(version: int, settings: Settings, *, by: str | None = None) -> None:
    """Make a version of listing-encoder the champion because the run that registered it was asked to."""
    connect_registry(settings).promote_encoder(
        version, by=by or by_whom(), reason="asked for by the run that trained it", now=datetime.now(UTC)
    )


# ---- the champion and the live index ---------------------------------------------------------------------------------


def promote(
    version: int, *, asked: bool, settings: Settings, by: str | None = None, because: str | None = None
) -> bool:
    """Make a version the champion if asked to, or if there is no champion yet. Returns whether it is the champion now.

    Args:
        version: of listing-embedder.
        asked: False promotes only the first version ever.
        settings: name the registry and the lake.
        by: who asks, or what; default: this user on this host.
        because: the reason; default: that the run which fitted it was asked to.

    Raises:
        LensError: it cannot serve, since its projection or its encoder is not in reach; the alias stays where it is.
    """
    registry = connect_registry(settings)
    champion = registry.champion()
    if champion is not None and (champion.version == version or not asked):
        return champion.version == version
    require_in_reach(registry.get(str(version)).card, settings)
    reason = because or ("asked for by the run that fitted it" if asked else "there was no champion")
    registry.promote(version, by=by or by_whom(), reason=reason, now=datetime.now(UTC))
    return True


def promote_build(index_name: str, settings: Settings, *, by: str) -> None:
    """Make the embedder of an index the champion again, before the alias moves back to that index.

    Raises:
        LensError: the registry does not know the embedder, or it is not in reach.
    """
    builds = connect_builds(settings)
    build = builds.get(index_name)
    version = build.model_version or connect_registry(settings).of_space(build.card.space)
    if version is None:
        raise LensError(f"no version of listing-embedder is of space {build.card.space}: register its fit again")
    promote(version, asked=True, settings=settings, by=by, because=f"rolled back to {index_name}")
    # From now on, this is the champion that the swap is planned for.
    builds.change(index_name, lambda _: {"model_version": version, "champion": version})


def by_whom() -> str:
    """Who moves the champion from a terminal."""
    try:
        user = getuser()
    except (KeyError, OSError):
        # In a container the user may have no name.
        user = f"user {os.getuid()}"
    return f"lens on {gethostname()} by {user}"


@dataclass(frozen=True)
class Standing:
    """Where the champion and the live index stand.

    Attributes:
        champion: None before the first promotion.
        live: None before the first swap.
        kept: the indexes that may serve again as they are.
        told: the record of how the champion became it; None if the alias was moved in MLflow and nothing wrote that down.
        coming: the space that is being built or rolled back to now; None if nothing is.
    """

    champion: RegisteredEmbedder | None
    live: Index | None
    kept: tuple[Index, ...]
    told: PromotionMove | None
    coming: str | None = None

    @property
    def follows(self) -> Move | None:
        """What brings the champion live; None if it is, or is on its way."""
        if self.champion is not None and self.champion.card.space == self.coming:
            return None
        return what_follows(self.champion, self.live, self.kept)

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to do: the champion is live, and its move is kept."""
        return self.champion is None or (self.told is not None and self.follows is None)


def standing(settings: Settings) -> Standing:
    """Ask MLflow and Elasticsearch. Raises LensError if one of them does not answer."""
    registry = connect_registry(settings)
    champion = registry.champion()
    # Only the newest move can have made the champion what it is: one before it was undone since.
    newest = next(iter(registry.promotions()), None)
    told = newest if champion and newest and newest.version == champion.version else None
    builds = connect_builds(settings, patience_s=0)
    every, under_way = builds.all(), builds.lock.under_way()
    kept = [builds.search_index.get(build.index) for build in every if build.state is State.KEPT]
    coming = [build.card.space for build in every if build.index == under_way]
    return Standing(champion, builds.search_index.live(), tuple(kept), told, coming[0] if coming else None)


def tell_move(at: Standing, settings: Settings, now: datetime) -> PromotionMove | None:
    """Keep the move that made the champion what it is, unless it is told already. Returns it; None without a champion."""
    if at.champion is None or at.told is not None:
        return at.told
    registry = connect_registry(settings)
    return registry.record_move(
        at.champion.version,
        by="MLflow",
        reason="the alias was moved in MLflow",
        over=registry.of_space(at.live.card.space) if at.live else None,
        now=now,
    )


def log_evaluation(window: Window, embedder: RegisteredEmbedder, settings: Settings) -> Path:
    """Log an evaluation from the lake to MLflow, and write its page. Returns the page's path."""
    manifest = Lake(settings.lake).manifest(evaluations(embedder.card.space), window)
    means = manifest.parameters["metrics"]
    kinds = kinds_evaluated(manifest.counts)
    # The figures are of the searches by photo, if there are any.
    shown = means_of(means, next(iter(kinds)))
    by_k = figures.metrics_by_k(shown, VARIANTS)
    by_dims = figures.ndcg_by_dims(_ndcg_by_dims(shown, embedder.card.dims), shown["embedding/ndcg@5"])
    page = evaluation_page(
        window=window,
        embedder=embedder,
        counts=manifest.counts,
        means={KIND_TITLES[kind]: (count, means_of(means, kind)) for kind, count in kinds.items()},
        by_k=by_k,
        by_dims=by_dims,
    )
    connect_registry(settings).log_evaluation(
        embedder,
        window=window.name,
        counts=manifest.counts,
        means=means,
        figures={"metrics_by_k": by_k, "ndcg_by_dims": by_dims},
        page=page,
    )
    path = settings.home / "pages" / f"evaluation-{window.name}-v{embedder.version}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def log_verification(verification: Verification, settings: Settings) -> Path:
    """Log an index's verification to MLflow, and write its page. Returns the page's path."""
    page = verification_page(verification)
    connect_registry(settings).log_verification(
        index=verification.index,
        space=verification.space,
        table_version=verification.table_version,
        passed=verification.passed,
        outcomes={check.name: check.passed for check in verification.checks},
        measured={check.name: check.measured for check in verification.checks if check.measured is not None},
        page=page,
    )
    path = settings.home / "pages" / f"verification-{verification.index}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _ndcg_by_dims(means: Mapping[str, float], dims: int) -> dict[int, float]:
    """nDCG@5 by the number of dimensions that an evaluation used: fewer than the projection's, where it did, then all of them."""
    fewer = {at: f"projected_{at}/ndcg@5" for at in prefix_dims(dims)}
    return {at: means[name] for at, name in fewer.items() if name in means} | {dims: means["projected/ndcg@5"]}


def _compared_metrics(comparison: Comparison) -> dict[str, float]:
    """The unseen test sessions' means, and the interval of the first, by role and metric."""
    metrics: dict[str, float] = {}
    for row in comparison.rows:
        if row.role == "compared":
            continue
        of = "test" if row.role == "fine-tuned" else f"test/{row.role}"
        of = f"{of}/projected" if row.variant == "projected" else of
        metrics |= {f"{of}/{name}": estimate.mean for name, estimate in row.unseen.metrics.items()}
        headline = row.unseen.metrics[RANKING_HEADLINE]
        metrics |= {f"{of}/{RANKING_HEADLINE}_low": headline.low, f"{of}/{RANKING_HEADLINE}_high": headline.high}
        if row.gain is not None:
            metrics |= {f"{of}/gain": row.gain.mean, f"{of}/gain_low": row.gain.low, f"{of}/gain_high": row.gain.high}
    tuned = comparison.row("fine-tuned")
    return metrics | ({"test/sessions": tuned.unseen.sessions} if tuned else {})


def _metrics_of(assessment: Assessment) -> dict[str, float]:
    quality, change = assessment.fitted, assessment.change
    # Recall falls as items are added: it can be compared only if their number is known.
    metrics: dict[str, float] = {"assessed_items": assessment.items, "assessed_queries": assessment.queries}
    metrics |= quality.recall[quality.dims]
    if assessment.centred is not None:
        metrics[f"centred/{HEADLINE}"] = assessment.centred
    if change is not None:
        metrics |= {f"before/{name}": value for name, value in change.before.recall[change.before.dims].items()}
        metrics |= change.model_dump(exclude={"before"})
    return metrics
