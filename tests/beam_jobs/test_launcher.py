"""The command line that all jobs share: what wins, what is refused, and how a refusal is read back from a runner."""

from __future__ import annotations

import logging

import pytest
from apache_beam.options.pipeline_options import GoogleCloudOptions, StandardOptions

from beam_jobs.launcher import launch, pipeline_options, refusal
from listing_lens.errors import LensError
from listing_lens.settings import load_settings


def test_the_command_line_wins_over_the_settings() -> None:
    settings = load_settings(beam_options={"temp_location": "gs://settings/t", "project": "p"})
    options = pipeline_options(settings, ["--temp_location=gs://line/t", "--runner=DirectRunner"])
    assert options.view_as(StandardOptions).runner == "DirectRunner"
    assert options.view_as(GoogleCloudOptions).temp_location == "gs://line/t"
    assert options.view_as(GoogleCloudOptions).project == "p"


def test_every_kind_of_value_reaches_beam() -> None:
    settings = load_settings(
        beam_options={"experiments": ["a", "b"], "streaming": True, "region": None, "project": "p"}
    )
    given = pipeline_options(settings, []).get_all_options(drop_default=True)
    assert given["experiments"] == ["a", "b"]
    assert given["streaming"] is True
    assert "region" not in given


@pytest.mark.parametrize("option", ["--dim=64", "--no-such-option"])
def test_an_option_that_nobody_has_is_refused(option: str) -> None:
    with pytest.raises(LensError, match=f"^{option} is an option of neither the job nor Beam"):
        pipeline_options(load_settings(), [option])


def test_a_setting_that_beam_does_not_have_is_refused() -> None:
    with pytest.raises(LensError, match="^LENS_BEAM_OPTIONS: Beam has no option --max_num_worker=9$"):
        pipeline_options(load_settings(beam_options={"max_num_worker": 9}), [])


def test_what_airflow_adds_is_taken() -> None:
    options = pipeline_options(load_settings(), ["--runner=FnApiRunner", "--labels=airflow-version=v3-3-2"])
    assert options.view_as(GoogleCloudOptions).labels == ["airflow-version=v3-3-2"]


def test_the_line_that_names_a_job_on_dataflow_is_logged() -> None:
    launch(lambda _: None)
    assert logging.getLogger("apache_beam.runners.dataflow.internal.apiclient").isEnabledFor(logging.INFO)
    assert not logging.getLogger("apache_beam.io").isEnabledFor(logging.INFO)


def test_an_unknown_runner_is_named() -> None:
    with pytest.raises(LensError, match="Beam has no runner 'NoSuch': set LENS_BEAM_RUNNER"):
        pipeline_options(load_settings(beam_runner="NoSuch"), [])


@pytest.mark.parametrize(
    ("err", "sentence"),
    [
        (LensError("the lake is dry: fill it"), "the lake is dry: fill it"),
        (LensError("the lake is dry [while running 'Read']"), "the lake is dry"),
        (
            RuntimeError("Traceback …\nmodels.errors.LensError: the lake is dry [while running 'Read']\n\n"),
            "the lake is dry",
        ),
        (RuntimeError("something else"), None),
    ],
    ids=["itself", "augmented", "as text", "another"],
)
def test_the_sentence_of_a_refusal(err: Exception, sentence: str | None) -> None:
    assert refusal(err) == sentence
