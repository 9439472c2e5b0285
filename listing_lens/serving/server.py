"""The search service as a process: its web server and its log, a JSON object per line."""

from __future__ import annotations

import logging.config
from typing import Any

import structlog
import uvicorn

from listing_lens.serving.app import create_app
from listing_lens.serving.service import Service
from listing_lens.settings import Settings

# How long requests under way may take to end when the process is to.
_GRACE_S = 10


def serve(settings: Settings, host: str, port: int) -> None:
    """Serve until the process is asked to end.

    Raises:
        LensError: the settings name no cluster.
    """
    logging.config.dictConfig(_logging())
    app = create_app(Service.of(settings))
    # Requests are logged by the application. Whose headers are believed is its own setting.
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_S,
    )
    uvicorn.Server(config).run()


def _logging() -> dict[str, Any]:
    known = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    formatter = {
        "()": structlog.stdlib.ProcessorFormatter,
        "foreign_pre_chain": known,
        "processors": [
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
    }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": formatter},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        "root": {"handlers": ["stderr"], "level": "INFO"},
        # One line per request that the service sends would be more lines than it has requests.
        "loggers": {name: {"level": "WARNING"} for name in ("elastic_transport", "httpx", "urllib3")},
    }
