"""The jobs' requests to Dataflow, as the SDK makes them from the documented options: to the last step before submission.

`--template_location` has the runner translate and stage everything, and write the request down instead of sending it. The
bucket is an emulated one; no other machine is reached.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apache_beam as beam
import google.auth
import pytest
from apache_beam.internal.gcp import auth
from apache_beam.portability.api import beam_runner_api_pb2
from google.auth.credentials import AnonymousCredentials
from tiny import FIRST, SECOND, Indexed, bounds, listing, log_search, photo
from tiny import land_sessions as put_sessions

from beam_jobs import (
    assess_projection,
    compact_lake,
    embed_listings,
    evaluate_sessions,
    fit_projection,
    index_listings,
    land_sessions,
    load_index,
    redrive_dead_letters,
    replay_listings,
    sample_pairs,
    verify_index,
)
from listing_lens.indexing.events import entry_of
from listing_lens.indexing.listing_log import ListingLog
from listing_lens.lake.records import Query, Session
from listing_lens.lake.window import Window

if TYPE_CHECKING:
    from google.cloud.storage import Bucket

_GUIDE = Path(__file__).parents[2] / "docker" / "dataflow" / "README.md"
_CPU, _GPU = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", _GUIDE.read_text(), re.DOTALL))
_KEY = "a-key-that-nobody-may-see"


class _Requested(BaseException):
    """The request is made."""


@pytest.fixture
def dataflow(indexed: Indexed, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs a job's `main` with the given options; returns the request that Dataflow would get."""
    monkeypatch.setattr(google.auth, "default", lambda *_, **__: (AnonymousCredentials(), "my-project"))
    # Credentials that another test was refused are not asked for again.
    monkeypatch.setattr(auth._Credentials, "_credentials_init", False)
    connect = socket.socket.connect

    def connect_to_this_machine(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1"), f"a connection to {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_to_this_machine)
    monkeypatch.setenv("LENS_BEAM_RUNNER", "DataflowRunner")
    monkeypatch.setenv("LENS_ELASTICSEARCH_API_KEY", _KEY)

    end = beam.Pipeline.__exit__

    def end_of_a_request(self: beam.Pipeline, *failure: Any) -> None:
        end(self, *failure)
        raise _Requested

    def request(main: Callable[[list[str]], None], arguments: list[str], options: dict[str, Any]) -> dict[str, Any]:
        monkeypatch.setenv("LENS_BEAM_OPTIONS", json.dumps(options | {"temp_location": f"gs://{bucket.name}/temp"}))
        # What was only written down did not run: what a job does after its pipeline has nothing to go by.
        with monkeypatch.context() as written_down:
            written_down.setattr(beam.Pipeline, "__exit__", end_of_a_request)
            with pytest.raises(_Requested):
                main([*arguments, f"--template_location=gs://{bucket.name}/request.json"])
        made: dict[str, Any] = json.loads(bucket.blob("request.json").download_as_bytes())
        return made

    return request


def _jobs(indexed: Indexed) -> dict[str, tuple[Callable[[list[str]], None], list[str]]]:
    first = ["--window_start", str(FIRST.start), "--window_end", str(FIRST.end)]
    both = ["--window_start", str(FIRST.start), "--window_end", str(SECOND.end)]
    shown = ("m004", "m005")
    put_sessions(
        indexed.lake,
        FIRST,
        [Session("s", FIRST.start + timedelta(hours=1), Query(("m005.jpg",)), shown, (True, False))],
    )
    # A day of searches that is over, whenever the tests run.
    logged = Window(FIRST.start - timedelta(days=1000), FIRST.end - timedelta(days=1000))
    log_search(indexed.lake, logged.start, photo(5), shown, shown[:1])
    index = ["--index", indexed.index.name]
    now = datetime.now(UTC)
    ListingLog.of(indexed.lake).log.append([entry_of(listing("told"), now)], now, "test")
    # One that nothing was loaded into.
    new = indexed.search_index.create(indexed.index.card, "new")
    return {
        "assess_projection": (assess_projection.main, ["--name", "fit"]),
        "compact_lake": (compact_lake.main, []),
        "embed_listings": (embed_listings.main, both),
        "evaluate_sessions": (evaluate_sessions.main, [*first, "--card", indexed.index.card.model_dump_json()]),
        "fit_projection": (fit_projection.main, ["--name", "again"]),
        "index_listings": (index_listings.main, ["--subscription", "projects/p/subscriptions/listings"]),
        "land_sessions": (land_sessions.main, bounds(logged)),
        "load_index": (load_index.main, ["--index", new.name]),
        # The marketplace's broken photo is a letter.
        "redrive_dead_letters": (redrive_dead_letters.main, ["--all"]),
        "replay_listings": (replay_listings.main, index),
        "sample_pairs": (sample_pairs.main, ["--name", "p", *first]),
        "verify_index": (verify_index.main, index),
    }


@pytest.mark.parametrize("options", [_CPU, _GPU], ids=["cpu", "gpu"])
def test_every_job_is_a_request_with_the_documented_options(
    dataflow: Callable[..., dict[str, Any]],
    options: dict[str, Any],
    indexed: Indexed,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LENS_SEARCH_LOG_DAYS", "100000")
    # Of an index that nothing was loaded into, there is nothing to verify.
    load_index.main(["--index", indexed.index.name, "--runner=FnApiRunner"])
    for name, (main, arguments) in _jobs(indexed).items():
        environment = dataflow(main, arguments, options)["environment"]
        [pool] = environment["workerPools"]
        assert pool["machineType"] == options["machine_type"], name
        assert pool["diskSizeGb"] == options["disk_size_gb"]
        assert pool["autoscalingSettings"] == {
            "algorithm": "AUTOSCALING_ALGORITHM_BASIC",
            "maxNumWorkers": options["max_num_workers"],
        }
        assert pool["numThreadsPerWorker"] == options["number_of_worker_harness_threads"]
        assert pool["ipConfiguration"] == "WORKER_IP_PRIVATE"
        assert pool["subnetwork"] == options["subnetwork"]
        assert [image["containerImage"] for image in pool["sdkHarnessContainerImages"]] == [
            options["sdk_container_image"]
        ]
        assert environment["serviceAccountEmail"] == options["service_account_email"]
        assert environment.get("serviceOptions", []) == options.get("dataflow_service_options", [])
        assert set(options["experiments"]) <= set(environment["experiments"])
        assert "use_multiple_sdk_containers" not in environment["experiments"]
        pipeline = _staged_pipeline(environment, bucket)
        assert len(pipeline.components.transforms) > 5
        assert {env.urn for env in pipeline.components.environments.values()} == {"beam:env:docker:v1"}


def test_no_key_is_in_what_is_submitted(
    dataflow: Callable[..., dict[str, Any]], indexed: Indexed, bucket: Bucket
) -> None:
    dataflow(load_index.main, ["--index", indexed.index.name], _CPU)
    submitted = {blob.name: blob.download_as_bytes() for blob in bucket.list_blobs()}
    assert any(name.endswith("/pipeline.pb") for name in submitted)
    assert not [name for name, content in submitted.items() if _KEY.encode() in content]


def _staged_pipeline(environment: dict[str, Any], bucket: Bucket) -> beam_runner_api_pb2.Pipeline:
    address = environment["sdkPipelineOptions"]["options"]["pipelineUrl"]
    content = bucket.blob(address.removeprefix(f"gs://{bucket.name}/")).download_as_bytes()
    return beam_runner_api_pb2.Pipeline.FromString(content)
