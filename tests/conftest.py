"""What all tests share: an environment that is not the developer's, and the real servers, started when first asked for.

A test says nothing about how busy the machine is. Its clock is passed in, or it waits without a deadline of its own:
pytest's timeout, which is long, ends what hangs.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from google.cloud.storage import Bucket

_CACHE = os.environ.get("LENS_CACHE")
_FOREIGN = ("LENS_", "AIRFLOW_", "MLFLOW_", "LISTING_LENS_")
# Airflow and MLflow read these when they are imported, which collecting the tests does.
_AIRFLOW_HOME = tempfile.TemporaryDirectory(prefix="lens-tests-airflow-")
for _name in [name for name in os.environ if name.startswith(_FOREIGN)]:
    del os.environ[_name]
# Tests start many processes. Each would compile all that it imports, which takes it longer than anything else it does.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ |= {
    "AIRFLOW_HOME": _AIRFLOW_HOME.name,
    # Reading a DAG's file may take that many seconds; Airflow's half minute is not much beside busy processes.
    "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "600",
    "AIRFLOW__DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT": "600",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # The models of tests are small. Several threads would mostly wait for each other, and keep processors busy with that.
    "OMP_NUM_THREADS": "1",
}
if _CACHE:
    # The jars are verified whenever they are used, so the developer's will do.
    os.environ["LENS_CACHE"] = _CACHE

from listing_lens.settings import Settings, load_settings  # noqa: E402
from listing_lens.stack import down, up  # noqa: E402
from listing_lens.stack.airflow_api import AirflowApi  # noqa: E402
from listing_lens.stack.airflow_home import CHECKOUT  # noqa: E402
from listing_lens.stack.processes import family  # noqa: E402
from listing_lens.stack.servers import NAMES, SERVERS  # noqa: E402

settings.register_profile("no deadline", deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)
settings.load_profile("no deadline")
for _server in SERVERS:
    _server.patience_s = 1200.0

_PROBE_DAGS = Path(__file__).parent / "listing_lens" / "stack" / "dags"


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use the shared servers."""
    for item in items:
        if "stack_settings" in getattr(item, "fixturenames", ()):
            item.add_marker("servers")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a home and a lake of its own, without a stack, and an encoder that computes alike on every host."""
    monkeypatch.setenv("LENS_ENCODER_BACKENDS", '["float32"]')
    monkeypatch.setenv("LENS_HOME", str(tmp_path / "lens-home"))
    monkeypatch.setenv("LENS_LAKE", str(tmp_path / "lens-lake"))


@pytest.fixture(scope="session")
def stack_settings(tmp_path_factory: pytest.TempPathFactory, untrained_siglip: Path) -> Iterator[Settings]:
    """The settings of the stack that all tests of a run share. It is empty until one of the servers is asked for."""
    home = tmp_path_factory.mktemp("stack")
    settings = load_settings(
        home=home,
        lake=str(home / "lake"),
        encoder=str(untrained_siglip),
        encoder_backends=("float32",),
        projection_dims=8,
        max_dead_letter_ratio=0.1,
        training_folder=home / "finetune",
        comparison_encoders=("pixels:4",),
        embed_schedule="@daily",
        # So that catching up means the two windows of the tests' marketplace, and no more.
        embed_start=datetime.now(UTC).date() - timedelta(days=2),
    )
    yield settings
    down(settings)
    assert not [process for name in NAMES for process in family(name, home, None)]


@pytest.fixture(scope="session")
def elasticsearch_url(stack_settings: Settings) -> str:
    """A real Elasticsearch node; tests use index names of their own."""
    return up(stack_settings, only=("elasticsearch",)).elasticsearch_url


@pytest.fixture(scope="session")
def mlflow_url(stack_settings: Settings) -> str:
    """A real MLflow server; tests use experiment and model names of their own."""
    return up(stack_settings, only=("mlflow",)).mlflow_url


@pytest.fixture(scope="session")
def airflow(stack_settings: Settings) -> Iterator[AirflowApi]:
    """A real Airflow with the project's DAGs, and the other servers that their tasks need."""
    folders = {"listing-lens": CHECKOUT / "dags", "probes": _PROBE_DAGS}
    bundles = [
        {
            "name": name,
            "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
            "kwargs": {"path": str(folder)},
        }
        for name, folder in folders.items()
    ]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps(bundles))
        up(stack_settings, only=("elasticsearch", "mlflow", "airflow"))
    with AirflowApi.of_stack(load_settings(home=stack_settings.home)) as api:
        for file in sorted(folders["listing-lens"].glob("*.py")):
            api.wait_for_dag(file.stem, timeout_s=600)
        yield api


@pytest.fixture(scope="session")
def untrained_siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small SigLIP with random weights."""
    from models.encoders.small_siglip import save_untrained_siglip

    return save_untrained_siglip(tmp_path_factory.mktemp("encoders") / "untrained-siglip")


@pytest.fixture(scope="session")
def storage_address() -> Iterator[str]:
    """A server that speaks the Cloud Storage API, in memory."""
    from gcp_storage_emulator.server import create_server

    server = create_server("127.0.0.1", 0, in_memory=True)
    server.start()
    yield f"http://127.0.0.1:{server._api._httpd.server_port}"
    server.stop()


@pytest.fixture
def bucket(storage_address: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A new bucket on the emulated Cloud Storage, which this test's clients talk to."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.storage import Client

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage_address)
    client = Client(project="emulator", credentials=AnonymousCredentials())
    return client.create_bucket(f"bucket-{abs(hash(request.node.nodeid)):x}")
