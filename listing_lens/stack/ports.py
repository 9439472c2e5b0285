"""Ports of 127.0.0.1."""

from __future__ import annotations

import socket
from collections.abc import Iterable


def choose_port(preferred: Iterable[int]) -> int:
    """The first preferred port that is free, else one that the system assigns."""
    return next(port for port in (_bind(wanted) for wanted in (*preferred, 0)) if port)


def _bind(port: int) -> int:
    """Bind the port for a moment; returns 0 if it is taken."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: a port whose last connections are in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            # Only listening is a reliable test on every system: two sockets may share a bound port.
            probe.listen(1)
        except OSError:
            return 0
        return int(probe.getsockname()[1])
