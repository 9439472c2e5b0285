"""A real Airflow of the stack, and the client that the demo drives it with."""

import sqlite3
import threading
from contextlib import closing
from datetime import UTC, datetime

import httpx
import psutil
import pytest

from listing_lens.errors import LensError
from listing_lens.settings import Settings
from listing_lens.stack.airflow_api import AirflowApi, BackfillState, RunState
from listing_lens.stack.airflow_home import (
    DATABASE,
    USER,
    own_variables,
    password_file,
    read_password,
    write_airflow_home,
)
from listing_lens.stack.processes import family
from listing_lens.stack.state import StackState

DAG, SECOND_DAG = "stack_probe", "second_probe"
# Until a DAG is there; a run may take longer.
PATIENCE_S = 1200.0


@pytest.fixture(scope="module")
def probe(airflow: AirflowApi) -> AirflowApi:
    for dag_id in (DAG, SECOND_DAG):
        airflow.wait_for_dag(dag_id, timeout_s=PATIENCE_S)
        airflow.unpause(dag_id)
    return airflow


def day(number: int) -> datetime:
    return datetime(2026, 3, number, tzinfo=UTC)


def test_a_task_sees_the_stack_and_its_window(probe: AirflowApi, stack_settings: Settings) -> None:
    seen: list[RunState] = []
    run_id = probe.trigger(DAG, {"note": 1}, logical_date=day(1), interval=(day(1), day(2)))
    over = probe.wait_for_run(DAG, run_id, seen.append)
    assert [(task.task_id, task.state) for task in over.tasks] == [("look", "success")]
    assert seen[-1] == over
    path = f"dags/{DAG}/dagRuns/{run_id}/taskInstances/look/xcomEntries/return_value"
    told = probe._request("GET", path, parameters={"deserialize": "true"}).json()["value"]
    assert str(StackState.load(stack_settings.home).addresses["elasticsearch_url"]) in str(told)
    assert str(StackState.load(stack_settings.home).addresses["mlflow_url"]) in str(told)
    assert str(stack_settings.home) in str(told)
    assert "2026-03-01 00:00:00+00:00" in str(told)
    assert "2026-03-02 00:00:00+00:00" in str(told)


def test_a_failed_run_names_the_task_and_its_log(probe: AirflowApi, stack_settings: Settings) -> None:
    run_id = probe.trigger(DAG, {"fail": True})
    with pytest.raises(LensError, match="task look of stack_probe failed in run") as caught:
        probe.wait_for_run(DAG, run_id)
    logs = stack_settings.home / "airflow" / "logs"
    (log,) = logs.glob(f"dag_id={DAG}/run_id={run_id}/task_id=look/attempt=1.log")
    assert str(log) in str(caught.value)
    assert "asked to fail" in log.read_text()


def test_a_backfill_waits_for_a_database_that_is_busy_for_longer_than_sqlite_waits(
    probe: AirflowApi, stack_settings: Settings
) -> None:
    database = stack_settings.home / "airflow" / DATABASE
    with closing(sqlite3.connect(database, isolation_level=None, check_same_thread=False)) as other:
        other.execute("PRAGMA busy_timeout = 60000")
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(6.0, other.rollback)
        release.start()
        backfill = probe.create_backfill(SECOND_DAG, day(25), day(25))
        release.join()
    over = probe.wait_for_backfill(SECOND_DAG, backfill)
    assert [run.state for run in over.runs] == ["success"]


def test_a_backfill_runs_each_window(probe: AirflowApi) -> None:
    seen: list[BackfillState] = []
    # Nothing ends while the DAG is paused.
    probe.pause(DAG)
    backfill = probe.create_backfill(DAG, day(10), day(11))
    with pytest.raises(LensError, match="already a running backfill"):
        probe.create_backfill(DAG, day(12), day(12))
    probe.unpause(DAG)
    over = probe.wait_for_backfill(DAG, backfill, seen.append)
    assert [run.state for run in over.runs] == ["success", "success"]
    assert seen[-1] == over
    # Airflow has yet to close the one before.
    failing = probe.create_backfill(DAG, day(20), day(20), conf={"fail": True})
    with pytest.raises(LensError, match="task look of stack_probe failed in run backfill__"):
        probe.wait_for_backfill(DAG, failing)


def test_a_new_run_is_told_from_those_that_are_known(probe: AirflowApi) -> None:
    first = probe.trigger(DAG)
    known = [run.run_id for run in probe.runs(DAG)]
    assert known[0] == first
    with pytest.raises(LensError, match="nothing started stack_probe within 0 s"):
        probe.wait_for_new_run(DAG, known, timeout_s=0)
    second = probe.trigger(DAG)
    assert probe.wait_for_new_run(DAG, known) == second
    assert [probe.wait_for_run(DAG, run_id).state for run_id in (first, second)] == ["success", "success"]


def test_what_does_not_exist_is_a_sentence(airflow: AirflowApi) -> None:
    with pytest.raises(LensError, match="Airflow answered 404 to PATCH dags/nothing"):
        airflow.unpause("nothing")
    with pytest.raises(LensError, match="Airflow has no DAG 'nothing' after 0 s"):
        airflow.wait_for_dag("nothing", timeout_s=0)


def test_a_stale_token_is_replaced(airflow: AirflowApi, stack_settings: Settings) -> None:
    with AirflowApi(airflow.url, USER, read_password(stack_settings.home)) as api:
        api.wait_for_dag(DAG, timeout_s=PATIENCE_S)
        auth = api._http.auth
        assert auth is not None
        vars(auth)["_token"] = "stale"
        api.wait_for_dag(DAG, timeout_s=0)


def test_another_password_is_refused(airflow: AirflowApi) -> None:
    with AirflowApi(airflow.url, USER, "guess") as api, pytest.raises(LensError, match="does not accept the password"):
        api.unpause(DAG)
    assert httpx.get(f"{airflow.url}/api/v2/dags", timeout=None).status_code == 401


def test_it_listens_on_this_machine_only_and_tells_no_secret(airflow: AirflowApi, stack_settings: Settings) -> None:
    home = stack_settings.home
    mine = {process.pid for process in family("airflow", home, StackState.load(home).processes["airflow"])}
    ports = [c for c in psutil.net_connections("tcp") if c.pid in mine and c.status == psutil.CONN_LISTEN]
    assert {c.laddr.ip for c in ports} == {"127.0.0.1"}
    password = read_password(home)
    assert password not in (home / "logs" / "airflow.log").read_text()
    assert not [p for p in psutil.process_iter(["cmdline"]) if password in " ".join(p.info["cmdline"] or ())]


def test_secrets_are_private_made_once_and_differ_between_homes(stack_settings: Settings) -> None:
    first, second = stack_settings.home / "a", stack_settings.home / "b"
    configurations = [write_airflow_home(home, port) / "airflow.cfg" for home, port in ((first, 1), (second, 1))]
    contents = [file.read_text() for file in configurations]
    secrets = [
        {line for line in content.splitlines() if line.startswith(("fernet_key", "secret_key", "jwt_secret"))}
        for content in contents
    ]
    assert [len(lines) for lines in secrets] == [3, 3]
    assert not secrets[0] & secrets[1]
    password = read_password(first)
    write_airflow_home(first, 2)
    assert read_password(first) == password != read_password(second)
    assert configurations[0].read_text() == contents[0].replace("127.0.0.1:1", "127.0.0.1:2").replace(
        "port = 1", "port = 2"
    )
    assert {file.stat().st_mode & 0o777 for file in (*configurations, password_file(first))} == {0o600}
    assert {"AIRFLOW_HOME", "AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__API__PORT"} <= set(own_variables(first / "airflow"))
