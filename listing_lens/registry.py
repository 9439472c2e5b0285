"""MLflow's model registry, as the settings name it."""

from __future__ import annotations

from listing_lens.settings import Settings, missing
from models.registry import Registry


def connect_registry(settings: Settings) -> Registry:
    """Raises LensError when no MLflow server is configured or it does not answer."""
    url = settings.mlflow_url or missing("mlflow_url", "set it, or start the local stack with `lens up`")
    return Registry.connect(url)
