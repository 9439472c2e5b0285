"""The registry: fits, evaluations, verifications and fine-tunings as MLflow runs, embedders and encoders as versions of models.

An embedder's artefacts are the card, and the projection as safetensors and JSON; an encoder's are its folder's files:
weights as safetensors, configs, tokenizer.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import time
from typing import Any, Literal

import httpx
from matplotlib.figure import Figure

# Set before MLflow is imported: its links and progress bars would interrupt a command's own output.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from models.embedder import CANDIDATE, CHAMPION, ENCODER_MODEL, MODEL, EmbedderCard
from models.encoders.files import model_files
from models.errors import LensError
from models.projection import Projection

_PROJECTION_EXPERIMENT = "projection fits"
_EVALUATION_EXPERIMENT = "offline evaluation"
_VERIFICATION_EXPERIMENT = "index verification"
_FINETUNING_EXPERIMENT = "fine-tuning"
# A version's files are under this name in its run.
_ARTIFACTS = {MODEL: "embedder", ENCODER_MODEL: "encoder"}
_DESCRIPTIONS = {
    MODEL: "Encoder and projection: the identity of a vector space.",
    ENCODER_MODEL: "Encoders that were fine-tuned on the marketplace's own pairs.",
}
_REMEDIES = {
    MODEL: "fit a projection with `lens projection fit` or the DAG refit_projection",
    ENCODER_MODEL: "fine-tune an encoder with the DAG finetune_encoder",
}
# The tag by which a resumed training finds its run.
_KEY = "finetune_key"
# A version has a tag for every time that it became the champion: this and the time.
_MOVE = "move_"
_NONE = "none"
# MLflow's limit for the length of a parameter's value.
_PARAM_CHARACTERS = 6000
_PATIENCE_S = 10


@dataclass(frozen=True)
class RegisteredEmbedder:
    """A version of listing-embedder, and its card."""

    version: int
    card: EmbedderCard


@dataclass(frozen=True)
class RegisteredEncoder:
    """A version of listing-encoder.

    Attributes:
        version: its number.
        encoder_id: a name and a hash of its content.
        source: where it is loaded from.
        parent_id: the encoder that was fine-tuned.
        parent_source: where that one is loaded from.
        pairs_fingerprint: identifies the image–title pairs that it was trained on.
    """

    version: int
    encoder_id: str
    source: str
    parent_id: str
    parent_source: str
    pairs_fingerprint: str


@dataclass(frozen=True)
class PromotionMove:
    """How a version became the champion.

    Attributes:
        version: its number.
        at: when.
        by: who moved the alias, or what.
        because: the reason.
        over: the version that it replaced; None if there was none.
        metrics: of the version's run, as they were then; empty if it has none.
        thresholds: what the metrics had to pass; empty if nothing was asked of them.
    """

    version: int
    at: datetime
    by: str
    because: str
    over: int | None
    metrics: Mapping[str, float]
    thresholds: Mapping[str, float]

    @property
    def key(self) -> str:
        """The tag's key, which no other move of the version has."""
        return f"{_MOVE}{self.at.astimezone(UTC):%Y%m%dT%H%M%S.%fZ}"

    def value(self) -> str:
        """The tag's value: JSON, for people too, who read it on the version's page."""
        said = {"at": self.at.isoformat(), "by": self.by, "because": self.because, "over": self.over or _NONE}
        return json.dumps(
            said | {"metrics": dict(self.metrics) or _NONE, "thresholds": dict(self.thresholds) or _NONE},
            ensure_ascii=False,
        )

    @classmethod
    def of_tag(cls, version: int, value: str) -> PromotionMove:
        """The move that a tag of a version tells."""
        said = json.loads(value)
        return cls(
            version=version,
            at=datetime.fromisoformat(said["at"]),
            by=said["by"],
            because=said["because"],
            over=None if said["over"] == _NONE else said["over"],
            metrics={} if said["metrics"] == _NONE else said["metrics"],
            thresholds={} if said["thresholds"] == _NONE else said["thresholds"],
        )


@dataclass(frozen=True)
class Registry:
    """The registry on one MLflow server."""

    client: MlflowClient

    @classmethod
    def connect(cls, url: str) -> Registry:
        """Raises LensError when nothing answers at the address."""
        try:
            # MLflow's own client would keep retrying for minutes.
            httpx.get(f"{url.rstrip('/')}/health", timeout=_PATIENCE_S)
            client = MlflowClient(tracking_uri=url, registry_uri=url)
            client.search_experiments(max_results=1)
        except (httpx.HTTPError, httpx.InvalidURL, MlflowException) as err:
            raise LensError(
                f"MLflow at {url} cannot be reached: start it with `lens up`, or check LENS_MLFLOW_URL"
            ) from err
        return cls(client)

    # ---- embedders --------------------------------------------------------------------------------------------------

    def register(
        self,
        card: EmbedderCard,
        projection: Projection,
        *,
        name: str,
        version: int,
        within: str | None,
        share: float,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        description: str,
        figures: Mapping[str, Figure],
    ) -> int:
        """Log a fit as a run, register its embedder, and make that the candidate. The same space is registered once.

        Args:
            card, projection: the embedder.
            name: the run's.
            version: of the encoder's table, that it was fitted on.
            within: the window that the items were last updated in; None is all.
            share: which share of those items was sampled.
            metrics, tags: beyond the fit's own.
            description: what someone who may promote the version should know, for its page and the run's.
            figures: by file name, without the suffix.
        """
        registered = self._version_with(MODEL, space=card.space)
        if registered is None:
            run_id = self._start_run(_PROJECTION_EXPERIMENT, name)
            self._log_fit(run_id, card, projection, version, within, share)
            self.log_metrics(run_id, metrics)
            self.client.log_batch(
                run_id, tags=[RunTag(key, value) for key, value in {**tags, MLFLOW_RUN_NOTE: description}.items()]
            )
            self._log_figures(run_id, figures)
            self.end(run_id)
            registered = self._create_version(MODEL, run_id, _space_tags(card), description)
        self.client.set_registered_model_alias(MODEL, CANDIDATE, str(registered))
        return registered

    def get(self, name: str) -> RegisteredEmbedder:
        """A version of listing-embedder by its number or by an alias.

        Raises:
            LensError: there is none by that name.
        """
        found = self._find(MODEL, name)
        return RegisteredEmbedder(int(found.version), self._card_of(found))

    def champion(self) -> RegisteredEmbedder | None:
        """The version that should serve; None before the first promotion."""
        return self.get(CHAMPION) if self.has(CHAMPION) else None

    def of_space(self, space: str) -> int | None:
        """The version of listing-embedder whose vectors are of this space; None if there is none."""
        return self._version_with(MODEL, space=space)

    def promote(
        self, version: int, *, by: str, reason: str, now: datetime, thresholds: Mapping[str, float] | None = None
    ) -> None:
        """Make an embedder the champion. A tag of its version keeps the move; nothing happens if it is the champion.

        Args:
            version: its number.
            by: who asks for it, or what.
            reason: why.
            now: the time.
            thresholds: what its metrics had to pass, if anything.
        """
        self._promote(MODEL, version, by, reason, now, thresholds or {})

    def record_move(self, version: int, *, by: str, reason: str, over: int | None, now: datetime) -> PromotionMove:
        """Keep a move of the champion that something else made; `over` is the version that it replaced."""
        return self._record(MODEL, version, by, reason, over, now, {})

    def moves(self, version: int, model: str = MODEL) -> list[PromotionMove]:
        """Every time that a version became the champion, newest first.

        Raises:
            LensError: there is no such version.
        """
        return _moves_of(self._find(model, str(version)))

    def promotions(self, model: str = MODEL) -> list[PromotionMove]:
        """Every move of the champion that is known, over all versions, newest first."""
        versions = self.client.search_model_versions(f"name = '{model}'")
        return _newest_first([move for version in versions for move in _moves_of(version)])

    # ---- encoders ---------------------------------------------------------------------------------------------------

    def register_encoder(
        self,
        run_id: str,
        folder: Path,
        *,
        encoder_id: str,
        source: str,
        parent_id: str,
        parent_source: str,
        parent_revision: str | None = None,
        pairs_fingerprint: str,
        description: str,
    ) -> int:
        """Log an encoder's files to its training's run, register it, and make it the candidate. It is registered once.

        Args:
            run_id: the run of the training.
            folder: holds the encoder's files; other files are ignored.
            encoder_id: a name and a hash of the folder's content.
            source: where the encoder is loaded from for good.
            parent_id, parent_source: the encoder that was fine-tuned.
            parent_revision: the parent's commit on a model hub; None if it came from elsewhere.
            pairs_fingerprint: identifies the pairs that it was trained on.
            description: what someone who may promote the version should know, for its page and the run's.

        Returns:
            The version.
        """
        version = self._version_with(ENCODER_MODEL, encoder_id=encoder_id)
        if version is None:
            for path in model_files(folder):
                self.client.log_artifact(run_id, str(path), _ARTIFACTS[ENCODER_MODEL])
            tags = {
                "encoder_id": encoder_id,
                "encoder_source": source,
                "parent_id": parent_id,
                "parent_source": parent_source,
                "parent_revision": parent_revision or "none",
                "pairs_fingerprint": pairs_fingerprint,
            }
            self.client.set_tag(run_id, MLFLOW_RUN_NOTE, description)
            version = self._create_version(ENCODER_MODEL, run_id, tags, description)
        self.client.set_registered_model_alias(ENCODER_MODEL, CANDIDATE, str(version))
        return version

    def get_encoder(self, name: str) -> RegisteredEncoder:
        """A version of listing-encoder by its number or by an alias.

        Raises:
            LensError: there is none by that name, or it was registered by something else.
        """
        found = self._find(ENCODER_MODEL, name)
        try:
            return RegisteredEncoder(
                version=int(found.version),
                encoder_id=found.tags["encoder_id"],
                source=found.tags["encoder_source"],
                parent_id=found.tags["parent_id"],
                parent_source=found.tags["parent_source"],
                pairs_fingerprint=found.tags["pairs_fingerprint"],
            )
        except KeyError as err:
            raise LensError(
                f"version {found.version} of {ENCODER_MODEL} lacks the tag {err}: it was not registered by finetune_encoder"
            ) from None

    def promote_encoder(self, version: int, *, by: str, reason: str, now: datetime) -> None:
        """Make an encoder the champion. A tag of its version keeps the move; nothing happens if it is the champion."""
        self._promote(ENCODER_MODEL, version, by, reason, now, {})

    # ---- versions ---------------------------------------------------------------------------------------------------

    def has(self, alias: str, model: str = MODEL) -> bool:
        """Whether an alias names a version.

        Raises:
            LensError: MLflow did not say.
        """
        try:
            return alias in self.client.get_registered_model(model).aliases
        except MlflowException as err:
            if err.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise LensError(f"MLflow does not say whether {model} has the alias {alias!r} ({err}): try again") from err

    def _find(self, model: str, name: str) -> ModelVersion:
        try:
            return (
                self.client.get_model_version(model, name)
                if name.isdigit()
                else self.client.get_model_version_by_alias(model, name)
            )
        except MlflowException as err:
            raise LensError(
                f"MLflow's {model} has no version or alias {name!r}: {_REMEDIES[model]}, or set the alias in MLflow"
            ) from err

    def _version_with(self, model: str, **tag: str) -> int | None:
        [(key, value)] = tag.items()
        found = self.client.search_model_versions(f"name = '{model}' and tags.{key} = '{value}'")
        return max((int(version.version) for version in found), default=None)

    def _create_version(self, model: str, run_id: str, tags: Mapping[str, str], description: str | None = None) -> int:
        try:
            self.client.create_registered_model(model, description=_DESCRIPTIONS[model])
        except MlflowException as err:
            if err.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        created = self.client.create_model_version(
            model,
            source=f"runs:/{run_id}/{_ARTIFACTS[model]}",
            run_id=run_id,
            tags=dict(tags),
            description=description,
            await_creation_for=0,
        )
        return int(created.version)

    def _promote(
        self, model: str, version: int, by: str, reason: str, now: datetime, thresholds: Mapping[str, float]
    ) -> None:
        before = int(self._find(model, CHAMPION).version) if self.has(CHAMPION, model) else None
        if before == version:
            # Its newest move says what it replaced when it became the champion.
            return
        # First the record: a move that no tag tells is taken for one that was made in MLflow.
        self._record(model, version, by, reason, before, now, thresholds)
        self.client.set_registered_model_alias(model, CHAMPION, str(version))

    def _record(
        self,
        model: str,
        version: int,
        by: str,
        reason: str,
        over: int | None,
        now: datetime,
        thresholds: Mapping[str, float],
    ) -> PromotionMove:
        run_id = self._find(model, str(version)).run_id
        metrics = self.client.get_run(run_id).data.metrics if run_id else {}
        move = PromotionMove(version, now, by, reason, over, metrics, thresholds)
        latest = {"promoted_at": now.isoformat(), "promoted_because": reason, "promoted_over": str(over or _NONE)}
        for key, value in (latest | {"promoted_by": by, move.key: move.value()}).items():
            self.client.set_model_version_tag(model, str(version), key, value)
        return move

    # ---- fine-tuning ------------------------------------------------------------------------------------------------

    def start_finetuning(self, name: str, parameters: Mapping[str, Any], *, key: str) -> str:
        """Start the run of a training, or continue the one that a killed or failed attempt with the same key left.

        Args:
            name: the run's name.
            parameters: what the training was asked for, logged once.
            key: identifies the training by everything that decides its outcome, so that it can be resumed.

        Returns:
            The run's id.
        """
        experiment = self._experiment(_FINETUNING_EXPERIMENT)
        for run in self.client.search_runs([experiment], f"tags.{_KEY} = '{key}'", order_by=["start_time DESC"]):
            if run.info.status != "FINISHED":
                self.client.update_run(run.info.run_id, status="RUNNING")
                return str(run.info.run_id)
        run_id = str(self.client.create_run(experiment, run_name=name).info.run_id)
        params = [Param(parameter, str(value)[:_PARAM_CHARACTERS]) for parameter, value in parameters.items()]
        # The key is set together with the parameters: a run that is found by it has them.
        self.client.log_batch(run_id, params=params, tags=[RunTag(_KEY, key)])
        return run_id

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log the metrics of one step, in one request."""
        now_ms = round(time() * 1000)
        self.client.log_batch(
            run_id, metrics=[Metric(_metric_name(name), float(value), now_ms, step) for name, value in metrics.items()]
        )

    def log_figure(self, run_id: str, figure: Figure, name: str) -> None:
        """Log a figure as a file of this name, such as retrievals/000500.png."""
        self.client.log_figure(run_id, figure, name)

    def end(self, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> None:
        """End a run."""
        self.client.set_terminated(run_id, status)

    # ---- fits and evaluations ----------------------------------------------------------------------------------------

    def log_evaluation(
        self,
        embedder: RegisteredEmbedder,
        *,
        window: str,
        counts: Mapping[str, int],
        means: Mapping[str, float],
        figures: Mapping[str, Figure],
        page: str,
    ) -> str:
        """Log an evaluation as a run, with its figures by name and its page. Returns the run's id."""
        run_id = self._start_run(_EVALUATION_EXPERIMENT, f"v{embedder.version} {window}")
        parameters = {"window": window, "model_version": embedder.version, **_space_tags(embedder.card), **counts}
        for key, value in parameters.items():
            self.client.log_param(run_id, key, value)
        self.log_metrics(run_id, means)
        self._log_figures(run_id, figures)
        self.client.log_text(run_id, page, "report.html")
        self.end(run_id)
        return run_id

    def log_verification(
        self,
        *,
        index: str,
        space: str,
        table_version: int,
        passed: bool,
        outcomes: Mapping[str, bool | None],
        measured: Mapping[str, float],
        page: str,
    ) -> str:
        """Log the verification of an index as a run, with its page.

        Args:
            index: its name.
            space: of its vectors.
            table_version: of the encoder's table, that it was compared with.
            passed: whether it may go live.
            outcomes: whether each check passed, by its name; None if it was left out.
            measured: what the checks measured, for those that measure a number.
            page: a report of all of them, as HTML.

        Returns:
            The run's id.
        """
        run_id = self._start_run(_VERIFICATION_EXPERIMENT, index)
        parameters = {"index": index, "space": space, "table_version": table_version}
        for key, value in parameters.items():
            self.client.log_param(run_id, key, value)
        made = {f"{name}/passed": float(outcome) for name, outcome in outcomes.items() if outcome is not None}
        self.log_metrics(run_id, {"passed": float(passed), **made, **measured})
        self.client.log_text(run_id, page, "report.html")
        self.end(run_id)
        return run_id

    def _log_fit(
        self,
        run_id: str,
        card: EmbedderCard,
        projection: Projection,
        version: int,
        within: str | None,
        share: float,
    ) -> None:
        parameters = {**_space_tags(card), "dims": card.dims, "encoder_source": card.encoder_source}
        parameters |= {"whitened": projection.whitened, "share": share}
        parameters |= {"table_version": version, "within": within or "all"}
        for key, value in parameters.items():
            self.client.log_param(run_id, key, value)
        explained_variance = float(projection.explained_variance_ratio.sum())
        self.log_metrics(run_id, {"rows": projection.rows, "explained_variance": explained_variance})
        tensors, about = projection.save()
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "projection.safetensors").write_bytes(tensors)
            (Path(folder) / "projection.json").write_bytes(about)
            (Path(folder) / "card.json").write_text(card.model_dump_json(indent=2))
            self.client.log_artifacts(run_id, folder, _ARTIFACTS[MODEL])

    def _start_run(self, experiment: str, name: str) -> str:
        """Start a run; one of the same name that a killed attempt left running is marked as failed."""
        experiment_id = self._experiment(experiment)
        left = f"attributes.run_name = '{name}' and attributes.status = 'RUNNING'"
        for run in self.client.search_runs([experiment_id], left):
            self.end(run.info.run_id, "FAILED")
        return str(self.client.create_run(experiment_id, run_name=name).info.run_id)

    def _log_figures(self, run_id: str, figures: Mapping[str, Figure]) -> None:
        for name, figure in figures.items():
            self.log_figure(run_id, figure, f"{name}.png")

    def _card_of(self, version: ModelVersion) -> EmbedderCard:
        with tempfile.TemporaryDirectory() as folder:
            path = self.client.download_artifacts(version.run_id, f"{_ARTIFACTS[MODEL]}/card.json", folder)
            return EmbedderCard.model_validate(json.loads(Path(path).read_text()))

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(self.client.create_experiment(name))
        except MlflowException as err:
            # Two runs may create it at once.
            if err.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return str(self.client.get_experiment_by_name(name).experiment_id)


def _space_tags(card: EmbedderCard) -> dict[str, str]:
    return {"space": card.space, "encoder_id": card.encoder_id, "projection_id": card.projection_id}


def _moves_of(version: ModelVersion) -> list[PromotionMove]:
    told = [value for key, value in version.tags.items() if key.startswith(_MOVE)]
    return _newest_first([PromotionMove.of_tag(int(version.version), value) for value in told])


def _newest_first(moves: Sequence[PromotionMove]) -> list[PromotionMove]:
    return sorted(moves, key=lambda move: move.at, reverse=True)


def _metric_name(name: str) -> str:
    # MLflow does not allow "@" in a metric's name.
    return name.replace("@", "_at_")
