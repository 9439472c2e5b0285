"""What a person at a terminal reads."""

import random
import sys
from collections.abc import Iterator

import httpx
import pytest
import typer
from typer.testing import CliRunner

from listing_lens.cli import stack as commands
from listing_lens.settings import load_settings
from listing_lens.stack import down, supervisor
from listing_lens.stack.ports import choose_port
from listing_lens.stack.servers import Server

SERVE = "import http.server, sys; http.server.test(http.server.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind='127.0.0.1')"


class Small(Server):
    name = "mlflow"
    # Among those that the system gives to nobody by itself.
    usual_port = choose_port(random.sample(range(20_000, 32_000), 9))
    patience_s = 600.0

    def command(self, port: int) -> list[str]:
        return [sys.executable, "-c", SERVE, str(port)]

    def health(self, client: httpx.Client) -> str:
        client.get("").raise_for_status()
        return ""


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[typer.Typer]:
    monkeypatch.setattr(supervisor, "SERVERS", (Small,))
    monkeypatch.setenv("COLUMNS", "200")
    app = typer.Typer()
    for command in (commands.up, commands.status, commands.down):
        app.command()(command)
    yield app
    down(load_settings())


def test_each_command_says_what_is(app: typer.Typer) -> None:
    url = f"http://127.0.0.1:{Small.usual_port}"

    def says(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == code, result.output
        return result.output

    assert "not started" in says("status", code=1)
    assert f"✓ mlflow: started, {url}" in says("up", "--only", "mlflow")
    assert f"✓ mlflow: already running, {url}" in says("up", "--only", "mlflow")
    output = says("status")
    assert "healthy" in output
    assert url in output
    assert "stopped: 1 process ended" in says("down")
    assert "nothing was running" in says("down")
