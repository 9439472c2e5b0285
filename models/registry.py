"""The registry: fits and evaluations as MLflow runs, embedders as versions of one registered model.

A version's artefacts are the card, and the projection as safetensors and JSON.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import httpx
from matplotlib.figure import Figure

# Before MLflow is imported: its addresses and progress bars would stand between a command's own lines.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from models.embedder import CANDIDATE, CHAMPION, MODEL, EmbedderCard
from models.errors import LensError
from models.projection import Projection

_PROJECTION_EXPERIMENT = "projection fits"
_EVALUATION_EXPERIMENT = "offline evaluation"
_ARTIFACTS = "embedder"
_PATIENCE_S = 10


@dataclass(frozen=True)
class RegisteredEmbedder:
    """A version of the registered model, and the card of the embedder that it is."""

    version: int
    card: EmbedderCard


@dataclass(frozen=True)
class Registry:
    """The registry on one MLflow server."""

    client: MlflowClient

    @classmethod
    def connect(cls, url: str) -> Registry:
        """Raises LensError when nothing answers at the address."""
        try:
            # MLflow's own client would go on trying for minutes.
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
        self, card: EmbedderCard, projection: Projection, windows: Sequence[str], figure: Figure, *, name: str
    ) -> int:
        """Log a fit as a run and its embedder as a version, and make that the candidate. The same space is kept once."""
        version = self._version_of(card)
        if version is None:
            run_id = self._log_fit(card, projection, windows, figure, name)
            version = self._create_version(card, run_id)
        self.client.set_registered_model_alias(MODEL, CANDIDATE, str(version))
        return version

    def get(self, name: str) -> RegisteredEmbedder:
        """A version by its number or by an alias.

        Raises:
            LensError: there is none of that name.
        """
        try:
            found = (
                self.client.get_model_version(MODEL, name)
                if name.isdigit()
                else self.client.get_model_version_by_alias(MODEL, name)
            )
        except MlflowException as err:
            raise LensError(
                f"MLflow's {MODEL} has no version or alias {name!r}: fit a projection with `lens projection fit` or the "
                f"DAG refit_projection, or set the alias in MLflow"
            ) from err
        return RegisteredEmbedder(int(found.version), self._card_of(found))

    def has(self, alias: str) -> bool:
        """Whether an alias names a version."""
        try:
            return alias in self.client.get_registered_model(MODEL).aliases
        except MlflowException:
            return False

    def promote(self, version: int, *, reason: str, now: datetime) -> None:
        """Make a version the champion, and leave on it a record of when, why, and what it replaced."""
        before = self.get(CHAMPION).version if self.has(CHAMPION) else None
        if before == version:
            # Its record says what it replaced when it became the champion.
            return
        tags = {"promoted_at": now.isoformat(), "promoted_because": reason, "promoted_over": str(before or "none")}
        for key, value in tags.items():
            self.client.set_model_version_tag(MODEL, str(version), key, value)
        self.client.set_registered_model_alias(MODEL, CHAMPION, str(version))

    # ---- runs -------------------------------------------------------------------------------------------------------

    def log_evaluation(
        self,
        embedder: RegisteredEmbedder,
        *,
        window: str,
        counts: Mapping[str, int],
        means: Mapping[str, float],
        figure: Figure,
        page: str,
    ) -> str:
        """Log an evaluation as a run, with its page. Returns the run's id."""
        run = self.client.create_run(self._experiment(_EVALUATION_EXPERIMENT), run_name=f"v{embedder.version} {window}")
        run_id: str = run.info.run_id
        parameters = {"window": window, "model_version": embedder.version, **_space_tags(embedder.card), **counts}
        for key, value in parameters.items():
            self.client.log_param(run_id, key, value)
        for key, value in means.items():
            # MLflow does not take "@" in a metric's name.
            self.client.log_metric(run_id, key.replace("@", "_at_"), value)
        self.client.log_figure(run_id, figure, "metrics_by_k.png")
        self.client.log_text(run_id, page, "report.html")
        self.client.set_terminated(run_id)
        return run_id

    def _log_fit(
        self, card: EmbedderCard, projection: Projection, windows: Sequence[str], figure: Figure, name: str
    ) -> str:
        run = self.client.create_run(self._experiment(_PROJECTION_EXPERIMENT), run_name=name)
        run_id: str = run.info.run_id
        parameters = {**_space_tags(card), "dims": card.dims, "encoder_source": card.encoder_source}
        parameters |= {"windows": len(windows), "first_window": windows[0], "last_window": windows[-1]}
        for key, value in parameters.items():
            self.client.log_param(run_id, key, value)
        self.client.log_metric(run_id, "rows", projection.rows)
        self.client.log_metric(run_id, "explained_variance", float(projection.explained_variance_ratio.sum()))
        self.client.log_figure(run_id, figure, "explained_variance.png")
        self.client.log_dict(run_id, list(windows), "windows.json")
        tensors, about = projection.save()
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "projection.safetensors").write_bytes(tensors)
            (Path(folder) / "projection.json").write_bytes(about)
            (Path(folder) / "card.json").write_text(card.model_dump_json(indent=2))
            self.client.log_artifacts(run_id, folder, _ARTIFACTS)
        self.client.set_terminated(run_id)
        return run_id

    def _create_version(self, card: EmbedderCard, run_id: str) -> int:
        try:
            self.client.create_registered_model(
                MODEL, description="Encoder and projection: the identity of a vector space."
            )
        except MlflowException as err:
            if err.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        created = self.client.create_model_version(
            MODEL, source=f"runs:/{run_id}/{_ARTIFACTS}", run_id=run_id, tags=_space_tags(card), await_creation_for=0
        )
        return int(created.version)

    def _version_of(self, card: EmbedderCard) -> int | None:
        found = self.client.search_model_versions(f"name = '{MODEL}' and tags.space = '{card.space}'")
        return max((int(version.version) for version in found), default=None)

    def _card_of(self, version: ModelVersion) -> EmbedderCard:
        with tempfile.TemporaryDirectory() as folder:
            path = self.client.download_artifacts(version.run_id, f"{_ARTIFACTS}/card.json", folder)
            return EmbedderCard.model_validate(json.loads(Path(path).read_text()))

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(self.client.create_experiment(name))
        except MlflowException as err:
            # Two runs may make it at once.
            if err.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return str(self.client.get_experiment_by_name(name).experiment_id)


def _space_tags(card: EmbedderCard) -> dict[str, str]:
    return {"space": card.space, "encoder_id": card.encoder_id, "projection_id": card.projection_id}
