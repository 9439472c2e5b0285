"""The operator against what the provider's does badly: chatty jobs, timeouts, kills; and against failures of the job."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from plugins.hooks.beam_job import BeamJobHook
from plugins.operators.beam_job import BeamJobOperator

# Writes far more than a pipe holds, on both streams.
_CHATTY = """
import sys
for n in range(4000):
    print(f"out {n} " + "x" * 80)
    print(f"err {n} " + "x" * 80, file=sys.stderr)
"""
# Has a child of its own, ignores the request to end, and writes both ids down.
_STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
path = next(a for a in sys.argv if a.startswith("--pids=")).removeprefix("--pids=")
open(path + ".part", "w").write(f"{os.getpid()} {child.pid}")
os.rename(path + ".part", path)
time.sleep(3600)
"""


@pytest.fixture
def hook() -> BeamJobHook:
    hook = BeamJobHook(runner="FnApiRunner")
    hook._log = logging.getLogger("beam job")
    return hook


def _run(hook: BeamJobHook, tmp_path: Path, code: str, **variables: object) -> None:
    script = tmp_path / "job.py"
    script.write_text(code)
    hook.start_python_pipeline(variables, py_file=str(script), py_options=[], py_interpreter=sys.executable)


def _wait_for(path: Path) -> list[psutil.Process]:
    while not path.exists():
        time.sleep(0.05)
    return [psutil.Process(int(pid)) for pid in path.read_text().split()]


def _all_gone(processes: list[psutil.Process]) -> bool:
    _gone, alive = psutil.wait_procs(processes, timeout=300)
    return not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def test_a_chatty_job_ends_and_every_line_is_logged(
    hook: BeamJobHook, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        _run(hook, tmp_path, _CHATTY)
    lines = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith("out ") for line in lines) == 4000
    assert sum(line.startswith("err ") for line in lines) == 4000


def test_the_log_comes_while_the_job_runs(hook: BeamJobHook, tmp_path: Path) -> None:
    seen = threading.Event()

    class Notice(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "hello":
                (tmp_path / "go").touch()
                seen.set()

    logger = logging.getLogger("beam job")
    logger.addHandler(Notice())
    logger.setLevel(logging.INFO)
    # The job goes on only once its first line has arrived here.
    _run(
        hook,
        tmp_path,
        f"""
import os, time
print("hello", flush=True)
until = time.monotonic() + 600
while not os.path.exists({str(tmp_path / "go")!r}):
    assert time.monotonic() < until, "nobody heard"
    time.sleep(0.01)
""",
    )
    assert seen.is_set()


def test_a_job_that_runs_out_of_time_leaves_no_process(
    hook: BeamJobHook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("listing_lens.process_group.GRACE_S", 0.2)
    pids = tmp_path / "pids"
    processes: list[psutil.Process] = []

    class TimeoutLike(BaseException):
        """As Airflow raises it: in the middle of whatever the task is doing."""

    real_follow = BeamJobHook._follow

    def follow_then_time_out(self: BeamJobHook, process: object, *rest: object) -> None:
        processes.extend(_wait_for(pids))
        raise TimeoutLike

    monkeypatch.setattr(BeamJobHook, "_follow", follow_then_time_out)
    with pytest.raises(TimeoutLike):
        _run(hook, tmp_path, _STUBBORN, pids=str(pids))
    monkeypatch.setattr(BeamJobHook, "_follow", real_follow)
    assert len(processes) == 2
    assert _all_gone(processes)


def test_a_task_that_is_killed_takes_its_job_along(
    hook: BeamJobHook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("listing_lens.process_group.GRACE_S", 0.2)
    pids = tmp_path / "pids"
    failures: list[BaseException] = []

    def run() -> None:
        try:
            _run(hook, tmp_path, _STUBBORN, pids=str(pids))
        except AirflowException as err:
            failures.append(err)

    task = threading.Thread(target=run)
    task.start()
    processes = _wait_for(pids)
    hook.kill()
    task.join()
    assert _all_gone(processes)
    assert failures


def test_a_failure_says_the_last_line(hook: BeamJobHook, tmp_path: Path) -> None:
    with pytest.raises(AirflowException, match="ended with code 1: error: the lake is dry"):
        _run(hook, tmp_path, "import sys; print('working'); sys.exit('error: the lake is dry')")


def test_wrong_arguments_are_not_tried_again(hook: BeamJobHook, tmp_path: Path) -> None:
    with pytest.raises(AirflowFailException, match="does not take its arguments"):
        _run(hook, tmp_path, "import argparse; argparse.ArgumentParser().parse_args(['--no-such-option'])")


def test_options_reach_the_job(hook: BeamJobHook, tmp_path: Path) -> None:
    out = tmp_path / "argv"
    code = f"import sys; open({str(out)!r}, 'w').write('|'.join(sys.argv[1:]))"
    _run(hook, tmp_path, code, index="a b", dims=None, labels={"airflow-version": "v3"})
    assert out.read_text() == "--runner=FnApiRunner|--index=a b|--labels=airflow-version=v3"


def test_packages_of_its_own_are_refused(hook: BeamJobHook) -> None:
    with pytest.raises(AirflowFailException, match="py_requirements is not supported"):
        hook.start_python_pipeline({}, py_file="x", py_options=[], py_requirements=["left-pad"])


def test_the_job_is_not_in_our_process_group(hook: BeamJobHook, tmp_path: Path) -> None:
    out = tmp_path / "group"
    _run(hook, tmp_path, f"import os; open({str(out)!r}, 'w').write(str(os.getpgrp()))")
    assert int(out.read_text()) != os.getpgrp()


# As a job on Dataflow does: submits two, one after the other, and goes on after each; writes down how it was started.
_TWO_JOBS = """#!{python}
import json, sys
for job in ("2026-11-01_first", "2026-11-01_second"):
    print(f"INFO Created job with id: [{{job}}]", flush=True)
open({out!r}, "w").write(json.dumps(sys.argv[1:]))
"""


class _TaskInstance:
    """Keeps what a task leaves for others."""

    def __init__(self) -> None:
        self.left: dict[str, object] = {}

    def xcom_push(self, key: str, value: object) -> None:
        self.left[key] = value


def _on_dataflow(monkeypatch: pytest.MonkeyPatch, **options: object) -> None:
    monkeypatch.setenv("LENS_BEAM_RUNNER", "DataflowRunner")
    monkeypatch.setenv("LENS_BEAM_OPTIONS", json.dumps(options))


def test_on_dataflow_a_program_of_several_jobs_is_followed_to_its_end_where_the_settings_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, out = tmp_path / "python", tmp_path / "arguments.json"
    program.write_text(_TWO_JOBS.format(python=sys.executable, out=str(out)))
    program.chmod(0o755)
    _on_dataflow(monkeypatch, project="listings", region="europe-west4", temp_location="gs://bucket/temp")
    monkeypatch.setenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", json.dumps({"conn_type": "google_cloud_platform"}))
    operator = BeamJobOperator(task_id="embed_missing", job="embed_listings", arguments={"each_landed": True})
    operator.py_interpreter = str(program)
    left = operator.execute({"ti": _TaskInstance()})
    arguments = json.loads(out.read_text())
    assert arguments[:3] == ["-m", "beam_jobs.embed_listings", "--runner=DataflowRunner"]
    assert {"--project=listings", "--region=europe-west4", "--each_landed"} <= set(arguments)
    assert [name for name in arguments if name.startswith("--job_name=embed-missing-")]
    assert left == {"dataflow_job_id": "2026-11-01_second"}


def test_dataflow_without_its_settings_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _on_dataflow(monkeypatch, project="listings")
    operator = BeamJobOperator(task_id="embed", job="embed_listings", arguments={})
    with pytest.raises(AirflowFailException, match="Dataflow needs region, temp_location: set it in LENS_BEAM_OPTIONS"):
        operator.execute({"ti": _TaskInstance()})
