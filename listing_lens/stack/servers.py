"""The servers: how each is started, and when it is healthy."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import httpx

from listing_lens.settings import Settings
from listing_lens.stack.airflow_home import CHECKOUT, own_variables, write_airflow_home
from listing_lens.stack.jars import ensure_jars

_CHECK_TIMEOUT_S = 5.0
_NO_TELEMETRY = {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
_NEEDED_OF_AIRFLOW = ("metadatabase", "scheduler", "dag_processor")


class Server(ABC):
    """One server of the stack, for a set of settings."""

    name: ClassVar[str]
    usual_port: ClassVar[int]
    # How long to wait until it is healthy, on a slow and busy machine.
    patience_s: ClassVar[float]
    # Between being asked to end and being killed.
    grace_s: ClassVar[float] = 15.0

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    def setting(self) -> str:
        """The setting that holds its address."""
        return f"{self.name}_url"

    @property
    def folder(self) -> Path:
        return self.settings.home / self.name

    @property
    def external_url(self) -> str | None:
        """Its address if the environment sets one: then it is used, never started or stopped."""
        return os.environ.get(f"LENS_{self.setting.upper()}") or None

    def prepare(self, port: int, on_progress: Callable[[str], None]) -> None:  # noqa: B027  (not every server has to)
        """What it needs before it starts."""

    @abstractmethod
    def command(self, port: int) -> list[str]: ...

    def environment(self) -> dict[str, str]:
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return {**os.environ, "PATH": programs, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", **_NO_TELEMETRY}

    @abstractmethod
    def health(self, client: httpx.Client) -> str:
        """What is wrong with it, or "". The client's base URL is its address."""

    def problem(self, url: str) -> str:
        """What is wrong with the server at an address, or ""."""
        try:
            with httpx.Client(base_url=url, timeout=_CHECK_TIMEOUT_S, headers=self.headers()) as client:
                return self.health(client)
        except httpx.HTTPStatusError as err:
            return f"it answers with status {err.response.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as err:
            return f"it does not answer ({type(err).__name__})"

    def headers(self) -> dict[str, str]:
        return {}


class Elasticsearch(Server):
    name = "elasticsearch"
    usual_port = 9200
    patience_s = 120.0

    def prepare(self, port: int, on_progress: Callable[[str], None]) -> None:
        ensure_jars(self.settings.cache, on_fetch=lambda count: on_progress(f"fetching {count} jars"))

    def command(self, port: int) -> list[str]:
        places = ["--home", str(self.folder), "--cache", str(self.settings.cache)]
        return [sys.executable, "-m", "listing_lens.stack.elasticsearch_node", *places, "--port", str(port)]

    def headers(self) -> dict[str, str]:
        key = self.settings.elasticsearch_api_key.get_secret_value()
        return {"Authorization": f"ApiKey {key}"} if key and self.external_url else {}

    def health(self, client: httpx.Client) -> str:
        # The embedded node lacks `GET /`.
        status = _get(client, "_cluster/health")["status"]
        return "" if status in ("green", "yellow") else f"the cluster is {status}"


class MLflow(Server):
    name = "mlflow"
    usual_port = 5000
    patience_s = 120.0

    def command(self, port: int) -> list[str]:
        place = ["--home", str(self.folder), "--port", str(port)]
        return [sys.executable, "-m", "listing_lens.stack.mlflow_server", *place]

    def environment(self) -> dict[str, str]:
        # The server's jobs are for evaluating language models; they would be three more processes.
        return _without(super().environment(), "MLFLOW_SERVER_") | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}

    def health(self, client: httpx.Client) -> str:
        client.get("health").raise_for_status()
        return ""


class Airflow(Server):
    name = "airflow"
    usual_port = 8080
    patience_s = 240.0

    def prepare(self, port: int, on_progress: Callable[[str], None]) -> None:
        write_airflow_home(self.settings.home, port)

    def command(self, port: int) -> list[str]:
        return [sys.executable, "-m", "listing_lens.stack.airflow_components"]

    def environment(self) -> dict[str, str]:
        mine = _without(self.settings.environment, *_ADDRESSES)
        # What the stack configures is not overridden; anything else, such as the log level, may be.
        inherited = _without(super().environment(), *own_variables(self.folder))
        python_path = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
        return {**inherited, **mine, "AIRFLOW_HOME": str(self.folder), "PYTHONPATH": python_path}

    def health(self, client: httpx.Client) -> str:
        components = _get(client, "api/v2/monitor/health")
        bad = [name for name in _NEEDED_OF_AIRFLOW if components[name]["status"] != "healthy"]
        return f"not healthy yet: {', '.join(bad)}" if bad else ""


class Search(Server):
    """The search service."""

    name = "search"
    usual_port = 8000
    patience_s = 120.0

    def command(self, port: int) -> list[str]:
        return [sys.executable, "-m", "listing_lens.cli", "serve", "--port", str(port)]

    def environment(self) -> dict[str, str]:
        return {**super().environment(), **_without(self.settings.environment, *_ADDRESSES)}

    def health(self, client: httpx.Client) -> str:
        answer = client.get("health/ready")
        if answer.status_code not in (httpx.codes.OK, httpx.codes.SERVICE_UNAVAILABLE):
            answer.raise_for_status()
        # A new stack has nothing to search, and is well.
        report = answer.json()
        return "; ".join(report["problems"]) if report["state"] == "unavailable" else ""


# In the order in which they are started: the search service and Airflow's tasks need the others.
SERVERS: tuple[type[Server], ...] = (Elasticsearch, MLflow, Search, Airflow)
NAMES = tuple(server.name for server in SERVERS)
# The stack's own addresses are not passed on: processes read them from the stack file through LENS_HOME, so they are right
# also after a server was started anew on another port. Addresses from the environment are inherited.
_ADDRESSES = tuple(f"LENS_{name.upper()}_URL" for name in NAMES)


def _without(environment: Mapping[str, str], *prefixes: str) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(prefixes)}


def _get(client: httpx.Client, path: str) -> Any:
    return client.get(path).raise_for_status().json()
