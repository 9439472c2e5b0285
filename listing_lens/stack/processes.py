"""The stack's processes: started in sessions of their own, found again with all their descendants, and ended.

A server starts processes, which start others, and any of them may be killed at any time. So a server's family is the
recorded process (by number and time of creation), its session, every process that carries its mark in the environment,
and the descendants of all these. Each way finds what another misses: a task may leave the session, a process
that sets its title overwrites its environment, and a parent may be gone.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from listing_lens.errors import LensError
from listing_lens.stack.state import ProcessRecord

_MARK = "LISTING_LENS_STACK"
# Times of creation are derived from the boot time, which moves when the clock is set.
_CLOCK_TOLERANCE_S = 2.0
_KILL_PATIENCE_S = 10.0


def spawn(server: str, home: Path, port: int, command: Sequence[str], environment: Mapping[str, str]) -> ProcessRecord:
    """Start a server that outlives this process. Its output goes to its log; the previous log is kept beside it."""
    log = log_file(home, server)
    folder = home / server
    for needed in (log.parent, folder):
        needed.mkdir(parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_suffix(".previous.log"))
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, _MARK: _mark(server, home)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    record = ProcessRecord(pid=process.pid, created=psutil.Process(process.pid).create_time(), port=port)
    # It is watched through its record, by whoever runs the next command; Popen would warn that it was not waited for.
    process.returncode = 0
    return record


def log_file(home: Path, server: str) -> Path:
    return home / "logs" / f"{server}.log"


def is_alive(record: ProcessRecord) -> bool:
    _collect(record)
    process = _find(record.pid)
    return process is not None and _is(process, record) and _lives(process)


def family(server: str, home: Path, record: ProcessRecord | None) -> set[psutil.Process]:
    """Every living process of a server, whether its first process is alive or not."""
    if record:
        _collect(record)
    found: set[psutil.Process] = set()
    session = record.pid if record and _session_is_its(record) else None
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if os.getsid(process.pid) == session or process.environ().get(_MARK) == _mark(server, home):
                found |= {process, *process.children(recursive=True)}
        except (psutil.Error, OSError):
            # It ended meanwhile, or belongs to another user.
            continue
    return {process for process in found - _self_and_ancestors() if _lives(process)}


def stop(find: Callable[[], set[psutil.Process]], grace_s: float) -> int:
    """Ask processes to end, and kill those that have not ended after the grace period. Returns how many there were."""
    seen: set[psutil.Process] = set()
    kill_from = time.monotonic() + grace_s
    while living := find():
        now = time.monotonic()
        if now > kill_from + _KILL_PATIENCE_S:
            raise LensError(f"process {min(process.pid for process in living)} does not end, not even when killed")
        for process in living if now > kill_from else living - seen:
            try:
                process.kill() if now > kill_from else process.terminate()
            except psutil.NoSuchProcess:
                continue
        seen |= living
        # Also reaps those that this process started, which would otherwise remain as zombies.
        psutil.wait_procs(living, timeout=0.2)
    return len(seen)


def _mark(server: str, home: Path) -> str:
    return f"{server}@{home}"


def _find(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _is(process: psutil.Process, record: ProcessRecord) -> bool:
    return abs(process.create_time() - record.created) < _CLOCK_TOLERANCE_S


def _collect(record: ProcessRecord) -> None:
    """Reap an ended process that this one started."""
    process = _find(record.pid)
    if process and _is(process, record) and process.status() == psutil.STATUS_ZOMBIE:
        with suppress(ChildProcessError):
            os.waitpid(record.pid, os.WNOHANG)


def _session_is_its(record: ProcessRecord) -> bool:
    """Whether the session of that number is the recorded process's: a number is not reused while a session has it."""
    leader = _find(record.pid)
    return leader is None or _is(leader, record)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _self_and_ancestors() -> set[psutil.Process]:
    me = psutil.Process()
    return {me, *me.parents()}
