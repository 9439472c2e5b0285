"""Up, status and down, with a small HTTP server in the place of Elasticsearch: starts take a moment, not seconds."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from listing_lens.errors import LensError
from listing_lens.settings import Settings, load_settings, running_stack, stack_file
from listing_lens.stack import Event, down, status, supervisor, up
from listing_lens.stack.ports import choose_port
from listing_lens.stack.processes import family, is_alive
from listing_lens.stack.servers import Server
from listing_lens.stack.state import StackState

ONLY = ("elasticsearch",)
SERVE = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(os.environ.get("ANSWER", "200")))
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


class Small(Server):
    name = "elasticsearch"
    # Among those that the system gives to nobody by itself.
    usual_port = choose_port(random.sample(range(20_000, 32_000), 9))
    patience_s = 600.0

    def command(self, port: int) -> list[str]:
        return [sys.executable, "-c", os.environ.get("SERVE", SERVE), str(port)]

    def health(self, client: httpx.Client) -> str:
        client.get("").raise_for_status()
        return ""


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.setattr(supervisor, "SERVERS", (Small,))
    monkeypatch.setattr("listing_lens.stack.servers._CHECK_TIMEOUT_S", 60.0)
    found = load_settings()
    yield found
    down(found)


def record(settings: Settings) -> supervisor.ProcessRecord:
    return StackState.load(settings.home).processes["elasticsearch"]


def answer(url: str) -> int:
    return httpx.get(url, timeout=None).status_code


def living(settings: Settings) -> set[psutil.Process]:
    return family("elasticsearch", settings.home, StackState.load(settings.home).processes.get("elasticsearch"))


def test_up_then_down(settings: Settings) -> None:
    url = up(settings, ONLY).elasticsearch_url
    assert url == f"http://127.0.0.1:{Small.usual_port}"
    assert load_settings().elasticsearch_url == url
    assert [(server.url, server.origin, server.problem) for server in status(settings)] == [(url, "stack", "")]
    before = living(settings)
    assert len(before) == 1
    assert down(settings) == 1
    assert not living(settings)
    assert not any(psutil.pid_exists(process.pid) for process in before)
    assert running_stack(settings.home) == {}
    assert [server.origin for server in status(settings)] == ["none"]
    assert down(settings) == 0


def test_the_second_up_finds_the_first(settings: Settings) -> None:
    first = up(settings, ONLY)
    process = record(settings)
    events: list[Event] = []
    assert up(settings, ONLY, events.append) == first
    assert events == [Event("elasticsearch", "running", first.elasticsearch_url)]
    assert record(settings) == process


def test_two_at_once_start_one_server(settings: Settings) -> None:
    found = []
    threads = [threading.Thread(target=lambda: found.append(up(settings, ONLY))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0] == found[1]
    assert len(living(settings)) == 1


def test_a_busy_port_is_passed_over(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", Small.usual_port)):
        url = up(settings, ONLY).elasticsearch_url
    assert not url.endswith(f":{Small.usual_port}")
    assert answer(url) == 200


def test_a_killed_server_is_started_anew_at_its_address(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", Small.usual_port)):
        url = up(settings, ONLY).elasticsearch_url
    killed = record(settings)
    os.kill(killed.pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(killed.pid)] if psutil.pid_exists(killed.pid) else [])
    assert [server.problem for server in status(settings)] == ["it was started, but runs no more"]
    assert up(settings, ONLY).elasticsearch_url == url
    assert is_alive(record(settings))


def killed_while(moment: str, settings: Settings) -> None:
    """Run `up` in another process that is killed at a moment."""
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_supervisor import Small, supervisor, ONLY, load_settings, up
supervisor.SERVERS = (Small,)
def die(*_arguments): os.kill(os.getpid(), signal.SIGKILL)
{moment}
up(load_settings(), ONLY)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


MOMENTS = {
    "before it is recorded": "supervisor.StackState.save = lambda self, home: self.processes and die()",
    "before it is healthy": "supervisor._wait = die",
}


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS.keys())
@pytest.mark.parametrize("then", ["up", "down"])
def test_an_up_that_was_killed_blocks_nothing(settings: Settings, moment: str, then: str) -> None:
    killed_while(moment, settings)
    assert len(living(settings)) == 1
    assert running_stack(settings.home) == {}
    if then == "up":
        assert answer(up(settings, ONLY).elasticsearch_url) == 200
        assert len(living(settings)) == 1
    else:
        assert down(settings) == 1
        assert not living(settings)


def test_an_unreadable_stack_file_blocks_nothing(settings: Settings) -> None:
    up(settings, ONLY)
    stack_file(settings.home).write_text("{")
    assert down(settings) == 1
    assert not living(settings)


def test_one_that_ends_is_named_with_its_log(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVE", "print('a line'); raise SystemExit('no disk space')")
    with pytest.raises(LensError) as caught:
        up(settings, ONLY)
    message = str(caught.value)
    assert message.startswith("elasticsearch ended while it was starting. Its log is ")
    assert str(settings.home / "logs" / "elasticsearch.log") in message
    assert message.endswith("a line\nno disk space") or message.endswith("no disk space\na line")
    assert running_stack(settings.home) == {}


def test_one_that_stays_unhealthy_is_named_and_ended(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSWER", "503")
    monkeypatch.setattr(Small, "patience_s", 1.0)
    with pytest.raises(LensError, match=r"not healthy after 1 s: it .*answer.*\. Its log is .*elasticsearch\.log"):
        up(settings, ONLY)
    assert not living(settings)
    assert not stack_file(settings.home).exists()


def test_one_that_hangs_is_ended_so_that_the_next_start_works(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    up(settings, ONLY)
    os.kill(record(settings).pid, signal.SIGSTOP)
    with monkeypatch.context() as hurry:
        hurry.setattr("listing_lens.stack.servers._CHECK_TIMEOUT_S", 0.5)
        hurry.setattr(Small, "patience_s", 1.0)
        hurry.setattr(Small, "grace_s", 0.5)
        with pytest.raises(LensError, match="not healthy after 1 s"):
            up(settings, ONLY)
    assert not living(settings)
    assert answer(up(settings, ONLY).elasticsearch_url) == 200


def test_a_server_of_the_environment_is_used_and_never_touched(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mine = load_settings(home=tmp_path / "other")
    url = up(mine, ONLY).elasticsearch_url
    monkeypatch.setenv("LENS_ELASTICSEARCH_URL", url)
    events: list[Event] = []
    try:
        assert up(settings, ONLY, events.append).elasticsearch_url == url
        assert events == [Event("elasticsearch", "external", url)]
        assert [(server.origin, server.problem) for server in status(settings)] == [("environment", "")]
        assert down(settings) == 0
        assert answer(url) == 200
    finally:
        down(mine)
    with pytest.raises(LensError, match="LENS_ELASTICSEARCH_URL names a server, but it does not answer"):
        up(settings, ONLY)


def test_an_unknown_server_is_refused(settings: Settings) -> None:
    with pytest.raises(
        LensError, match="there is no server 'solr': choose from elasticsearch, mlflow, search, airflow"
    ):
        up(settings, ("solr",))


def test_interrupted_by_hand_it_takes_its_servers_along(settings: Settings) -> None:
    def interrupt(event: Event) -> None:
        if event.step == "healthy":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        up(settings, ONLY, interrupt)
    assert not living(settings)
