"""A port that another program listens on must not be given to a server, however that program bound it."""

import random
import socket

import pytest

from listing_lens.stack.ports import choose_port


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::"])
def test_a_port_in_use_is_passed_over(host: str) -> None:
    both = ":" in host
    with socket.create_server(
        (host, 0), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both
    ) as busy:
        taken = busy.getsockname()[1]
        assert choose_port([taken]) != taken


def quiet_port() -> int:
    """A free port among those that the system gives to nobody by itself."""
    return choose_port(random.sample(range(20_000, 32_000), 9))


def test_the_first_free_preference_wins() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        free = quiet_port()
        assert choose_port([busy.getsockname()[1], free]) == free


def test_a_port_is_free_again_once_its_server_ended() -> None:
    port = quiet_port()
    with socket.create_server(("127.0.0.1", port)) as server, socket.create_connection(("127.0.0.1", port)):
        served, _ = server.accept()
        # The server's side closes first, so its port is the one that lingers.
        served.close()
    assert choose_port([port]) == port
