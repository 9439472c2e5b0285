"""Airflow's REST API, as far as a person's script needs it: unpause, backfill, trigger, wait, and say what failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import httpx
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from listing_lens.errors import LensError
from listing_lens.settings import Settings, missing
from listing_lens.stack.airflow_home import USER, read_password

_TIMEOUT_S = 30.0
_PAGE = 100
_POLL_S = 1.0
_OVER = ("success", "failed")
# Airflow closes a backfill within half a minute after its last run; a busy machine takes longer.
_CLOSING_S = 300.0


@dataclass(frozen=True)
class TaskState:
    """A task of a run; ``state`` is None before it is scheduled."""

    task_id: str
    map_index: int
    state: str | None
    try_number: int


@dataclass(frozen=True)
class RunState:
    """A run and its tasks."""

    run_id: str
    state: str
    tasks: tuple[TaskState, ...] = ()


@dataclass(frozen=True)
class BackfillState:
    """A backfill and its runs, by window. All its runs exist from the beginning."""

    backfill_id: int
    runs: tuple[RunState, ...]

    @property
    def over(self) -> bool:
        return all(run.state in _OVER for run in self.runs)


class AirflowApi:
    """A client of one Airflow, logged in as one user."""

    def __init__(self, url: str, user: str, password: str, logs: Path | None = None) -> None:
        """``logs`` is Airflow's log folder when it can be read from here: failures then name the file."""
        self.url = url.rstrip("/")
        self._logs = logs
        self._http = httpx.Client(base_url=self.url, timeout=_TIMEOUT_S, auth=_TokenAuth(self.url, user, password))

    @classmethod
    def of_stack(cls, settings: Settings) -> AirflowApi:
        """The local stack's Airflow."""
        if not settings.airflow_url:
            missing("airflow_url", "run `lens up`")
        return cls(settings.airflow_url, USER, read_password(settings.home), settings.home / "airflow" / "logs")

    def __enter__(self) -> AirflowApi:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._http.close()

    def wait_for_dag(self, dag_id: str, timeout_s: float = 120.0) -> None:
        """Wait until the DAG's file has been parsed; a new file is seen within some seconds.

        Raises:
            LensError: it did not appear; with the import errors there are.
        """
        for _ in _polls(timeout_s):
            if self._request("GET", f"dags/{dag_id}", allowed={404}).status_code != 404:
                return
        errors = [
            f"{error['filename']}: {error['stack_trace']}" for error in self._pages("importErrors", "import_errors")
        ]
        raise LensError("\n".join((f"Airflow has no DAG {dag_id!r} after {timeout_s:.0f} s", *errors)))

    def unpause(self, dag_id: str) -> None:
        """Let the scheduler create and run the DAG's runs."""
        self._set_paused(dag_id, paused=False)

    def pause(self, dag_id: str) -> None:
        self._set_paused(dag_id, paused=True)

    def trigger(
        self,
        dag_id: str,
        conf: Mapping[str, Any] | None = None,
        *,
        logical_date: datetime | None = None,
        interval: tuple[datetime, datetime] | None = None,
    ) -> str:
        """Start a run by hand and return its id. It has a data interval only if one is given; ``logical_date`` gives none."""
        body: dict[str, Any] = {"conf": dict(conf or {}), "logical_date": _iso(logical_date)}
        if interval:
            body |= {"data_interval_start": _iso(interval[0]), "data_interval_end": _iso(interval[1])}
        return str(self._request("POST", f"dags/{dag_id}/dagRuns", body=body).json()["dag_run_id"])

    def run(self, dag_id: str, run_id: str) -> RunState:
        """A run with the states of its tasks."""
        state = self._request("GET", f"dags/{dag_id}/dagRuns/{_part(run_id)}").json()["state"]
        return RunState(run_id, state, self.tasks(dag_id, run_id))

    def runs(self, dag_id: str) -> tuple[RunState, ...]:
        """The runs of a DAG, newest first, without their tasks."""
        found = self._pages(f"dags/{dag_id}/dagRuns", "dag_runs", order_by="-run_after")
        return tuple(RunState(run["dag_run_id"], run["state"]) for run in found)

    def tasks(self, dag_id: str, run_id: str) -> tuple[TaskState, ...]:
        path = f"dags/{dag_id}/dagRuns/{_part(run_id)}/taskInstances"
        # In the order in which they began: the first one that failed is why others did.
        return tuple(
            TaskState(task["task_id"], task["map_index"], task["state"], task["try_number"])
            for task in self._pages(path, "task_instances", order_by="start_date")
        )

    def wait_for_run(
        self,
        dag_id: str,
        run_id: str,
        on_progress: Callable[[RunState], None] = lambda state: None,
        timeout_s: float = 3600.0,
    ) -> RunState:
        """Wait until a run is over; every change of its state is reported.

        Raises:
            LensError: the run failed, with the task that did and where its log is; or it took longer.
        """
        seen: RunState | None = None
        for _ in _polls(timeout_s):
            state = self.run(dag_id, run_id)
            if state != seen:
                on_progress(state)
            seen = state
            if state.state == "failed":
                raise LensError(self._failure(dag_id, run_id))
            if state.state == "success":
                return state
        raise LensError(
            f"run {run_id} of {dag_id} is not over after {timeout_s:.0f} s: see {self._page(dag_id, run_id)}"
        )

    def wait_for_new_run(self, dag_id: str, known: Collection[str], timeout_s: float = 600.0) -> str:
        """Wait until a DAG has a run that is not among the known ones, and return the id of the first such.

        Raises:
            LensError: there was none in time.
        """
        for _ in _polls(timeout_s):
            if new := [run.run_id for run in self.runs(dag_id) if run.run_id not in known]:
                return new[-1]
        raise LensError(f"nothing started {dag_id} within {timeout_s:.0f} s: see {self._page(dag_id)}")

    def create_backfill(
        self,
        dag_id: str,
        start: datetime,
        end: datetime,
        *,
        conf: Mapping[str, Any] | None = None,
        reprocess: Literal["none", "failed", "completed"] = "none",
        max_active_runs: int = 2,
    ) -> int:
        """Run a DAG for every window that begins from ``start`` to ``end``, both included. Returns the backfill's id.

        Airflow keeps one open backfill per DAG; one that it has yet to close, since all its runs are over, is waited for.
        `reprocess` says which runs that exist already are run again.

        Raises:
            LensError: Airflow refuses it, as while another backfill of the DAG runs.
        """
        body = {
            "dag_id": dag_id,
            "from_date": _iso(start),
            "to_date": _iso(end),
            "dag_run_conf": dict(conf or {}),
            "reprocess_behavior": reprocess,
            "max_active_runs": max_active_runs,
        }
        for _ in _polls(_CLOSING_S):
            answer = self._request("POST", "backfills", body=body, allowed={httpx.codes.CONFLICT})
            if answer.status_code != httpx.codes.CONFLICT:
                return int(answer.json()["id"])
            # Airflow also refuses for the sake of one that it makes and, since its database is busy, takes away again.
            if (newest := self._newest_backfill(dag_id)) and not newest.over:
                break
        raise LensError(_refusal(answer))

    def backfill(self, backfill_id: int) -> BackfillState:
        return self._with_runs(self._request("GET", f"backfills/{backfill_id}").json())

    def _with_runs(self, found: Mapping[str, Any]) -> BackfillState:
        # The API does not list a backfill's runs: they are the backfill runs within its range.
        span = {"logical_date_gte": found["from_date"], "logical_date_lte": found["to_date"], "run_type": "backfill"}
        runs = self._pages(f"dags/{found['dag_id']}/dagRuns", "dag_runs", order_by="logical_date", **span)
        return BackfillState(int(found["id"]), tuple(RunState(run["dag_run_id"], run["state"]) for run in runs))

    def _newest_backfill(self, dag_id: str) -> BackfillState | None:
        parameters = {"dag_id": dag_id, "order_by": "-id", "limit": "1"}
        newest = self._request("GET", "backfills", parameters=parameters).json()["backfills"]
        return self._with_runs(newest[0]) if newest else None

    def wait_for_backfill(
        self,
        dag_id: str,
        backfill_id: int,
        on_progress: Callable[[BackfillState], None] = lambda state: None,
        timeout_s: float = 3600.0,
    ) -> BackfillState:
        """Wait until all runs of a backfill are over.

        Raises:
            LensError: as soon as one of its runs failed, with the task that did; or it took longer.
        """
        seen: BackfillState | None = None
        for _ in _polls(timeout_s):
            state = self.backfill(backfill_id)
            if state != seen:
                on_progress(state)
            seen = state
            if failed := [run.run_id for run in state.runs if run.state == "failed"]:
                raise LensError(self._failure(dag_id, failed[0]))
            if state.over:
                return state
        raise LensError(
            f"backfill {backfill_id} of {dag_id} is not over after {timeout_s:.0f} s: see {self._page(dag_id)}"
        )

    def _set_paused(self, dag_id: str, *, paused: bool) -> None:
        self._request("PATCH", f"dags/{dag_id}", body={"is_paused": paused})

    def _failure(self, dag_id: str, run_id: str) -> str:
        failed = next((task for task in self.tasks(dag_id, run_id) if task.state == "failed"), None)
        if failed is None:
            return f"run {run_id} of {dag_id} failed: see {self._page(dag_id, run_id)}"
        index = f"/mapped/{failed.map_index}" if failed.map_index >= 0 else ""
        where = f"{self._page(dag_id, run_id)}/tasks/{failed.task_id}{index}"
        if self._logs:
            parts = [f"dag_id={dag_id}", f"run_id={run_id}", f"task_id={failed.task_id}"]
            parts += [f"map_index={failed.map_index}"] if failed.map_index >= 0 else []
            where = f"{self._logs.joinpath(*parts, f'attempt={failed.try_number}.log')} or {where}"
        return f"task {failed.task_id} of {dag_id} failed in run {run_id}: its log is {where}"

    def _page(self, dag_id: str, run_id: str | None = None) -> str:
        """The address of a run, or a DAG, in the web interface."""
        return f"{self.url}/dags/{dag_id}" + (f"/runs/{_part(run_id)}" if run_id else "")

    def _pages(self, path: str, key: str, **parameters: str) -> Iterator[dict[str, Any]]:
        offset = 0
        while True:
            page = self._request(
                "GET", path, parameters={**parameters, "limit": str(_PAGE), "offset": str(offset)}
            ).json()
            yield from page[key]
            offset += len(page[key])
            if not page[key] or offset >= page["total_entries"]:
                return

    def _request(
        self,
        method: Literal["GET", "POST", "PATCH"],
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        parameters: Mapping[str, str] | None = None,
        allowed: frozenset[int] | set[int] = frozenset(),
    ) -> httpx.Response:
        def once() -> httpx.Response:
            response = self._http.request(method, f"/api/v2/{path}", json=body, params=parameters)
            if response.status_code not in allowed:
                response.raise_for_status()
            return response

        # Reads can be repeated; a POST that was cut off may have worked, unless Airflow says that it is busy.
        attempts = Retrying(
            stop=stop_after_attempt(5),
            wait=wait_exponential(0.2, max=5),
            retry=retry_if_exception(_is_busy if method == "POST" else _is_transient),
            reraise=True,
        )
        try:
            return attempts(once)
        except httpx.HTTPStatusError as err:
            raise LensError(_refusal(err.response)) from err
        except httpx.HTTPError as err:
            raise LensError(
                f"Airflow at {self.url} does not answer ({type(err).__name__}): `lens status` says more"
            ) from err


class _TokenAuth(httpx.Auth):
    """Log in if there is no token yet, or it is no longer accepted."""

    requires_response_body = True

    def __init__(self, url: str, user: str, password: str) -> None:
        self._url = f"{url}/auth/token"
        self._user = user
        self._password = password
        self._token = ""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
            response = yield request
            # An expired or foreign token is answered with 403.
            if response.status_code not in (401, 403):
                return
        login = {"username": self._user, "password": self._password}
        answer = yield httpx.Request("POST", self._url, json=login)
        if answer.status_code == 401:
            raise LensError(f"Airflow does not accept the password of user {self._user!r}")
        answer.raise_for_status()
        self._token = answer.json()["access_token"]
        request.headers["Authorization"] = f"Bearer {self._token}"
        yield request


def _refusal(response: httpx.Response) -> str:
    path = response.request.url.path.removeprefix("/api/v2/")
    return f"Airflow answered {response.status_code} to {response.request.method} {path}: {response.text[:500]}"


def _is_transient(err: BaseException) -> bool:
    if isinstance(err, httpx.HTTPStatusError):
        return err.response.status_code >= 500
    return isinstance(err, httpx.TransportError)


def _is_busy(err: BaseException) -> bool:
    return isinstance(err, httpx.HTTPStatusError) and err.response.status_code == 503


def _polls(timeout_s: float) -> Iterator[None]:
    """Yield at once and then at intervals until the time is over."""
    until = time.monotonic() + timeout_s
    while True:
        yield
        if time.monotonic() > until:
            return
        time.sleep(_POLL_S)


def _iso(when: datetime | None) -> str | None:
    return when.isoformat() if when else None


def _part(text: str) -> str:
    """A run's id as a part of a path."""
    return quote(text, safe="")
