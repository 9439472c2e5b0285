"""The real Elasticsearch node and MLflow server do what the project asks of them, and survive being killed."""

import json
import os
import signal
from pathlib import Path

import httpx
import mlflow
import psutil
import pytest
from elasticsearch import Elasticsearch

from listing_lens.settings import Settings, load_settings, stack_file
from listing_lens.stack import down, status, up
from listing_lens.stack.processes import family
from listing_lens.stack.state import StackState

INDEX = "stack-probe"
PATIENCE_S = 600.0


def write_vector(client: Elasticsearch) -> None:
    mappings = {"properties": {"vector": {"type": "dense_vector", "dims": 3, "similarity": "dot_product"}}}
    client.indices.create(index=INDEX, mappings=mappings, settings={"number_of_replicas": 0})
    client.index(index=INDEX, id="a", document={"vector": [1.0, 0.0, 0.0]}, refresh="wait_for")


def nearest(client: Elasticsearch) -> list[str]:
    knn = {"field": "vector", "query_vector": [1.0, 0.0, 0.0], "k": 1, "num_candidates": 10}
    return [hit["_id"] for hit in client.search(index=INDEX, knn=knn)["hits"]["hits"]]


def test_elasticsearch_is_the_version_and_searches_vectors(elasticsearch_url: str) -> None:
    with Elasticsearch(elasticsearch_url, request_timeout=PATIENCE_S) as client:
        (node,) = client.nodes.info()["nodes"].values()
        assert node["version"] == "9.2.2"
        write_vector(client)
        assert nearest(client) == ["a"]


def test_mlflow_keeps_runs_and_artefacts_over_http_alone(
    mlflow_url: str, tmp_path: Path, stack_settings: Settings
) -> None:
    client = mlflow.MlflowClient(mlflow_url)
    run = client.create_run(client.create_experiment("stack-probe"))
    client.log_metric(run.info.run_id, "recall", 0.5)
    (tmp_path / "note.txt").write_text("kept")
    client.log_artifact(run.info.run_id, str(tmp_path / "note.txt"))
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    assert client.get_run(run.info.run_id).data.metrics == {"recall": 0.5}
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["note.txt"]
    assert list((stack_settings.home / "mlflow" / "artifacts").rglob("note.txt"))


def test_mlflow_refuses_a_page_that_pretends_to_be_it(mlflow_url: str) -> None:
    """A name that an attacker points at 127.0.0.1 must not let a web page use the server."""
    answer = httpx.post(
        f"{mlflow_url}/api/2.0/mlflow/experiments/search",
        json={"max_results": 1},
        headers={"Host": "evil.example"},
        timeout=None,
    )
    assert answer.status_code == 403


def test_they_listen_on_this_machine_only(elasticsearch_url: str, mlflow_url: str, stack_settings: Settings) -> None:
    home = stack_settings.home
    servers = StackState.load(home).processes.items()
    mine = {process.pid for name, record in servers for process in family(name, home, record)}
    ports = [c for c in psutil.net_connections("tcp") if c.pid in mine and c.status == psutil.CONN_LISTEN]
    assert len(ports) >= 2
    assert {c.laddr.ip.removeprefix("::ffff:") for c in ports} == {"127.0.0.1"}


def test_the_search_service_is_well_while_there_is_nothing_to_search(
    elasticsearch_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LENS_ELASTICSEARCH_URL", elasticsearch_url)
    settings = load_settings(home=tmp_path / "home", alias="stack-nothing")
    monkeypatch.setenv("LENS_ALIAS", settings.alias)
    try:
        url = up(settings, ("search",)).search_url
        assert httpx.get(f"{url}/health/ready", timeout=None).json()["state"] == "nothing_to_search"
        assert httpx.get(f"{url}/", timeout=None).headers["content-type"].startswith("text/html")
        lines = [json.loads(line) for line in (settings.home / "logs" / "search.log").read_text().splitlines()]
        assert any(line["event"] == "GET /health/ready 503" for line in lines)
    finally:
        down(settings)


def test_a_killed_node_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "home")
    only = ("elasticsearch",)
    try:
        with Elasticsearch(up(settings, only).elasticsearch_url, request_timeout=PATIENCE_S) as client:
            write_vector(client)
        os.kill(StackState.load(settings.home).processes["elasticsearch"].pid, signal.SIGKILL)
        with Elasticsearch(up(settings, only).elasticsearch_url, request_timeout=PATIENCE_S) as client:
            assert nearest(client) == ["a"]
    finally:
        assert down(settings) == 1
    assert "Node" in (log := (settings.home / "logs" / "elasticsearch.log").read_text())
    assert log.rstrip().splitlines()[-1].endswith("closed"), "it was killed, not closed"
    assert not stack_file(settings.home).exists()


@pytest.mark.parametrize("name", ["elasticsearch", "mlflow"])
def test_status_asks_the_servers(name: str, stack_settings: Settings, elasticsearch_url: str, mlflow_url: str) -> None:
    (found,) = [server for server in status(stack_settings) if server.name == name]
    assert (found.problem, found.origin) == ("", "stack")
    assert found.log is not None
    assert found.log.exists()
