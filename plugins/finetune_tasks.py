"""The tasks of `finetune_encoder`. Heavy imports happen when a task runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from typing import Any

from airflow.sdk import get_current_context, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from listing_lens.errors import LensError
from listing_lens.lake.window import Window
from listing_lens.settings import Settings, load_settings
from plugins.tasks import this_run

# The DAG's params that are passed to `sample_pairs` unchanged.
_SAMPLING = ("pairs", "sessions", "validation_share", "test_share", "test_time", "image_side", "split_by", "balance")


@task
def resolve(name: str) -> dict[str, Any]:
    """Check the run's params before anything is computed, and settle what the later tasks must agree on.

    Returns:
        `sample`: the arguments of `sample_pairs`; `parent`: the source of the encoder to train further.
    """
    from listing_lens.embedding.sources import resolve_encoder
    from models.encoders.texts import require_text_tower
    from models.finetune.recipe import Recipe

    params, settings = get_current_context()["params"], load_settings()
    try:
        Recipe.parse(json.dumps(params["recipe"]))
        window = _window(name, params, settings)
        parent = resolve_encoder(params["parent"], settings)
        require_text_tower(parent, settings.encoder_trusted_code)
    except LensError as err:
        raise AirflowFailException(str(err)) from err
    bounds = {"window_start": window.start.isoformat(), "window_end": window.end.isoformat()}
    sampling = {option: params[option] for option in _SAMPLING}
    return {"sample": {"name": name, **bounds, **sampling}, "parent": parent}


@task
def register_encoder(name: str) -> int:
    """Register the encoder of a training as a version of listing-encoder, the candidate. Returns its version.

    Skipped if it is no better than its parent.
    """
    from listing_lens import registration

    version = registration.register_finetune(name, load_settings())
    if version is None:
        raise AirflowSkipException(
            "no validation was better than the parent's own, so there is no new encoder: give it more pairs, or another recipe"
        )
    return version


@task
def promote_encoder(version: int) -> None:
    """Make a version of listing-encoder the champion; skipped unless the run was asked to."""
    if not get_current_context()["params"]["promote"]:
        raise AirflowSkipException("the run was not asked to promote: set the alias champion in MLflow, or leave it")
    from listing_lens import registration

    registration.promote_encoder(version, load_settings(), by=this_run())


def _window(name: str, params: Mapping[str, Any], settings: Settings) -> Window:
    from listing_lens.finetuning.window import training_window
    from listing_lens.lake.pairs import pairs
    from listing_lens.lake.windows import LISTINGS, Lake

    lake = Lake(settings.lake)
    if sampled := lake.windows(pairs(name)):
        # A repeated run keeps its window, whatever has landed since.
        return sampled[-1]
    start, end = (date.fromisoformat(params[bound]) if params[bound] else None for bound in ("start", "end"))
    return training_window(lake.windows(LISTINGS), start, end)
