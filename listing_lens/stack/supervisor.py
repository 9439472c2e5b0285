"""Start the stack, report its status, and end it.

Everything is recorded as it happens: a process as soon as it runs, an address once its server is healthy. So whatever
is killed halfway, the next `lens up` finishes the job, and `lens down` finds everything that has to be ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from listing_lens.errors import LensError
from listing_lens.settings import Settings
from listing_lens.stack.ports import choose_port
from listing_lens.stack.processes import family, is_alive, log_file, spawn, stop
from listing_lens.stack.servers import NAMES, SERVERS, Airflow, Search, Server
from listing_lens.stack.state import ProcessRecord, StackState, stack_lock

_POLL_S = 0.25
_LOG_LINES = 15

Step = Literal["waiting", "preparing", "starting", "healthy", "running", "external", "stopping"]


@dataclass(frozen=True)
class Event:
    """Something that happened on the way; ``detail`` is an address, a number, or what is waited for."""

    server: str
    step: Step
    detail: str = ""


@dataclass(frozen=True)
class Addresses:
    """Where the servers answer; "" for one that is not part of it."""

    elasticsearch_url: str = ""
    mlflow_url: str = ""
    search_url: str = ""
    airflow_url: str = ""


@dataclass(frozen=True)
class ServerStatus:
    name: str
    url: str
    origin: Literal["stack", "environment", "none"]
    # "" when it is healthy.
    problem: str
    log: Path | None = None


OnEvent = Callable[[Event], None]


def _ignore(_event: Event) -> None:
    """For callers that do not watch."""


def up(settings: Settings, only: Sequence[str] = NAMES, on_event: OnEvent = _ignore) -> Addresses:
    """Start the servers that do not run yet, and wait until each is healthy.

    Args:
        settings: where the stack lives.
        only: names of the servers wanted.
        on_event: called with everything that happens.

    Raises:
        LensError: a server did not become healthy. It and those that this call started are ended again.
    """
    wanted = _choose(settings, only)
    home = settings.home
    with stack_lock(home, on_wait=lambda: on_event(Event("stack", "waiting", "another `lens up` or `lens down`"))):
        state = StackState.load(home)
        started: list[Server] = []
        try:
            # The search service reads the others' addresses when it starts; Airflow's tasks may run as soon as it does.
            for wave in (
                [server for server in wanted if not isinstance(server, Search | Airflow)],
                [server for server in wanted if isinstance(server, Search | Airflow)],
            ):
                for server in wave:
                    _start(server, state, started, on_event)
                _wait(wave, state, started, on_event)
        except BaseException:
            _end(started, state, home)
            raise
    return Addresses(**{server.setting: server.external_url or state.addresses[server.setting] for server in wanted})


def status(settings: Settings) -> list[ServerStatus]:
    """The status of each server, as the server itself reports it."""
    state = StackState.load(settings.home)
    return [_status(server(settings), state) for server in SERVERS]


def down(settings: Settings, on_event: OnEvent = _ignore) -> int:
    """End every process of the stack, including those that a crash left. Returns how many there were."""
    home = settings.home
    if not home.exists():
        return 0
    with stack_lock(home, on_wait=lambda: on_event(Event("stack", "waiting", "another `lens up` or `lens down`"))):
        state = StackState.load(home)
        servers = [server(settings) for server in SERVERS]
        for server in servers:
            if server.name in state.processes:
                on_event(Event(server.name, "stopping"))
        return _end(servers, state, home)


def _choose(settings: Settings, only: Sequence[str]) -> list[Server]:
    for name in only:
        if name not in NAMES:
            raise LensError(f"there is no server {name!r}: choose from {', '.join(NAMES)}")
    return [server(settings) for server in SERVERS if server.name in only]


def _start(server: Server, state: StackState, started: list[Server], on_event: OnEvent) -> None:
    """Start a server unless it runs already."""
    if server.external_url:
        return
    home = server.settings.home
    record = state.processes.get(server.name)
    if record and is_alive(record):
        return
    # Leftovers of an earlier crash would hold its port and its files.
    _end([server], state, home)
    port = choose_port([record.port, server.usual_port] if record else [server.usual_port])
    on_event(Event(server.name, "preparing"))
    server.prepare(port, lambda what: on_event(Event(server.name, "preparing", what)))
    on_event(Event(server.name, "starting", f"port {port}"))
    started.append(server)
    state.processes[server.name] = spawn(server.name, home, port, server.command(port), server.environment())
    state.save(home)


def _wait(servers: Sequence[Server], state: StackState, started: list[Server], on_event: OnEvent) -> None:
    """Wait until every server is healthy, and record each one's address as soon as it is."""
    begun = time.monotonic()
    waiting = list(servers)
    while waiting:
        for server in list(waiting):
            problem = _check(server, state)
            if not problem:
                waiting.remove(server)
                _healthy(server, state, new=server in started, on_event=on_event)
            elif server.external_url:
                raise LensError(
                    f"{server.name}: LENS_{server.setting.upper()} names a server, but {problem}: "
                    "start it, or unset the variable to have `lens up` start one"
                )
            elif not is_alive(state.processes[server.name]) and server not in started:
                # It was found running but has ended since: killed processes take a moment to go.
                _start(server, state, started, on_event)
            elif not is_alive(state.processes[server.name]):
                raise LensError(_with_log(server, f"{server.name} ended while it was starting"))
            elif time.monotonic() - begun > server.patience_s:
                # Also one that was only found: it would be found again by the next start.
                started.append(server)
                raise LensError(
                    _with_log(server, f"{server.name} is not healthy after {server.patience_s:.0f} s: {problem}")
                )
        if waiting:
            time.sleep(_POLL_S)


def _check(server: Server, state: StackState) -> str:
    return server.problem(server.external_url or _url(state.processes[server.name]))


def _healthy(server: Server, state: StackState, *, new: bool, on_event: OnEvent) -> None:
    if server.external_url:
        on_event(Event(server.name, "external", server.external_url))
        return
    url = _url(state.processes[server.name])
    state.addresses[server.setting] = url
    state.save(server.settings.home)
    on_event(Event(server.name, "healthy" if new else "running", url))


def _end(servers: Sequence[Server], state: StackState, home: Path) -> int:
    """End the servers' processes, then forget them; readers lose the addresses first."""
    for server in servers:
        state.addresses.pop(server.setting, None)
    state.save(home)

    def living() -> set[psutil.Process]:
        return {
            process for server in servers for process in family(server.name, home, state.processes.get(server.name))
        }

    count = stop(living, max((server.grace_s for server in servers), default=0))
    for server in servers:
        state.processes.pop(server.name, None)
    state.save(home)
    return count


def _status(server: Server, state: StackState) -> ServerStatus:
    log = log_file(server.settings.home, server.name)
    if server.external_url:
        return ServerStatus(server.name, server.external_url, "environment", server.problem(server.external_url))
    record = state.processes.get(server.name)
    if record is None:
        return ServerStatus(server.name, "", "none", "not started")
    if not is_alive(record):
        return ServerStatus(server.name, "", "stack", "it was started, but runs no more", log)
    return ServerStatus(server.name, _url(record), "stack", server.problem(_url(record)), log)


def _url(record: ProcessRecord) -> str:
    return f"http://127.0.0.1:{record.port}"


def _with_log(server: Server, what: str) -> str:
    log = log_file(server.settings.home, server.name)
    lines: list[str] = []
    with suppress(FileNotFoundError):
        lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
    return "\n".join((f"{what}. Its log is {log}" + (", and ends with:" if lines else ", and is empty"), *lines))
