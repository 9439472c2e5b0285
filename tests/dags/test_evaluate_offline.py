"""The DAG that evaluates: what a run's params and interval become for its job."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.providers.apache.beam.hooks.beam import beam_options_to_args
from tiny import FIRST

from models.embedder import EmbedderCard

FILE = Path(__file__).parents[2] / "dags" / "evaluate_offline.py"
CARD = EmbedderCard(encoder_source="pixels:4", encoder_id="pixels-4", encoder_dims=48, projection_id="00000001", dims=8)


@pytest.mark.parametrize("afresh", [False, True])
def test_the_job_is_given_the_window_the_card_and_whether_to_begin_afresh(afresh: bool) -> None:
    bag = DagBag(dag_folder=str(FILE), bundle_path=FILE.parent, bundle_name="dags-folder")
    dag = bag.dags["evaluate_offline"]
    evaluate: Any = dag.get_task("evaluate")
    resolved = {"version": 3, "card": CARD.model_dump(), "encoder_source": CARD.encoder_source}
    pulled = SimpleNamespace(xcom_pull=lambda *, key, **_: resolved[key])
    context: Any = {
        "params": dag.params.dump() | {"afresh": afresh},
        "data_interval_start": FIRST.start,
        "data_interval_end": FIRST.end,
        "ti": pulled,
    }
    evaluate.render_template_fields(context)
    given = dict(argument.partition("=")[::2] for argument in beam_options_to_args(evaluate.pipeline_options))
    assert EmbedderCard.model_validate_json(given.pop("--card")) == CARD
    bounds = {"--window_start": str(FIRST.start), "--window_end": str(FIRST.end)}
    assert given == bounds | ({"--afresh": ""} if afresh else {})
