"""Ending a server means all of its processes, whoever died before, and none of another program."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from listing_lens.stack.processes import family, is_alive, log_file, spawn, stop
from listing_lens.stack.state import ProcessRecord

# A server with a child that ignores SIGTERM, and one in a session of its own; it says when all are there.
TREE = """
import signal, subprocess, sys, time
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(3600)"
plain = "import time; print('up', flush=True); time.sleep(3600)"
for code, own_session in ((stubborn, False), (plain, True)):
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=own_session)
    child.stdout.readline()
print("ready", flush=True)
time.sleep(3600)
"""


def eventually(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.02)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[ProcessRecord]:
    record = spawn("tree", tmp_path, 1, [sys.executable, "-c", TREE], {})
    eventually(lambda: "ready" in log_file(tmp_path, "tree").read_text())
    yield record
    stop(lambda: family("tree", tmp_path, record), 0)


def test_all_of_a_server_is_found_and_ended(tmp_path: Path, tree: ProcessRecord) -> None:
    members = family("tree", tmp_path, tree)
    assert len(members) == 3
    assert stop(lambda: family("tree", tmp_path, tree), grace_s=0.5) == 3
    assert not any(psutil.pid_exists(process.pid) and process.status() != psutil.STATUS_ZOMBIE for process in members)
    assert not is_alive(tree)


def test_what_a_killed_server_leaves_is_found(tmp_path: Path, tree: ProcessRecord) -> None:
    psutil.Process(tree.pid).send_signal(signal.SIGKILL)
    eventually(lambda: not is_alive(tree))
    assert len(family("tree", tmp_path, tree)) == 2


def test_it_is_found_without_a_record(tmp_path: Path, tree: ProcessRecord) -> None:
    assert len(family("tree", tmp_path, None)) == 3
    assert not family("tree", tmp_path / "elsewhere", None)
    assert not family("other", tmp_path, None)


def test_a_later_process_of_the_same_number_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True) as stranger:
        created = psutil.Process(stranger.pid).create_time()
        record = ProcessRecord(pid=stranger.pid, created=created - 60, port=1)
        assert not is_alive(record)
        assert not family("tree", tmp_path, record)
        assert stop(lambda: family("tree", tmp_path, record), 0) == 0
        assert stranger.poll() is None
        stranger.kill()


def test_the_log_before_is_kept(tmp_path: Path) -> None:
    for word in ("first", "second"):
        record = spawn("say", tmp_path, 1, [sys.executable, "-c", f"print('{word}')"], {})
        eventually(lambda record=record: not is_alive(record))
    assert log_file(tmp_path, "say").read_text() == "second\n"
    assert log_file(tmp_path, "say").with_suffix(".previous.log").read_text() == "first\n"
