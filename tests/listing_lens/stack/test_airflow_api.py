"""What the client makes of answers that a healthy Airflow does not give on demand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from listing_lens.errors import LensError
from listing_lens.stack.airflow_api import AirflowApi

DAY = datetime(2026, 3, 1, tzinfo=UTC)
REFUSED = (409, {"detail": "There is already a running backfill for dag windows"})


def test_a_backfill_that_airflow_took_back_does_not_stand_in_the_way() -> None:
    with _answering({"POST": [REFUSED, (200, {"id": 4})], "GET": [(200, {"backfills": []})]}) as airflow:
        assert airflow.create_backfill("windows", DAY, DAY) == 4


def test_a_backfill_with_a_run_to_come_stands_in_the_way() -> None:
    newest = {"id": 3, "dag_id": "windows", "from_date": DAY.isoformat(), "to_date": DAY.isoformat()}
    runs = {"dag_runs": [{"dag_run_id": "backfill__1", "state": "running"}], "total_entries": 1}
    answers = {"POST": [REFUSED], "GET": [(200, {"backfills": [newest]}), (200, runs)]}
    with _answering(answers) as airflow, pytest.raises(LensError, match="already a running backfill for dag windows"):
        airflow.create_backfill("windows", DAY, DAY)


@contextmanager
def _answering(answers: dict[str, list[tuple[int, Any]]]) -> Iterator[AirflowApi]:
    """A client of a server that gives these answers, by method, in turn."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(*answers["GET"].pop(0))

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            login = (201, {"access_token": "token"})
            self._answer(*(login if self.path == "/auth/token" else answers["POST"].pop(0)))

        def log_message(self, *_args: object) -> None:
            pass

        def _answer(self, status: int, body: Any) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with AirflowApi(f"http://127.0.0.1:{server.server_address[1]}", "user", "password") as airflow:
            yield airflow
        server.shutdown()
