"""An embedder in MLflow's registry, for tests that move the champion: random, with no files in any lake."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from models.embedder import EmbedderCard
from models.moments import Moments
from models.projection import fit_projection
from models.registry import Registry


def register_embedder(registry: Registry, seed: int) -> tuple[int, EmbedderCard]:
    """The version and card of an embedder; the same seed gives the same one."""
    projection = fit_projection(Moments.of(np.random.default_rng([77, seed]).standard_normal((60, 6))), 3)
    card = EmbedderCard(
        encoder_source="pixels:2",
        encoder_id="pixels-2",
        encoder_dims=6,
        projection_id=projection.projection_id,
        dims=3,
    )
    version = registry.register(
        card,
        projection,
        name=f"registered {seed}",
        version=1,
        within=None,
        share=1.0,
        metrics={"recall@10": 0.75},
        tags={"projection_before": "none"},
        description="made for a test",
        figures={"explained_variance": Figure()},
    )
    return version, card
