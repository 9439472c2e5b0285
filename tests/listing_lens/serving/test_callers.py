"""Who asks: whose word is believed, and how often each may ask."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import Any

import pytest
from fastapi import Request

from listing_lens.serving.callers import Caller, Callers, Rates
from listing_lens.serving.limits import BusyError
from listing_lens.serving.problems import Problem

CALLERS = Callers({"shop": sha256(b"secret").hexdigest()}, "X-User", ("10.0.0.0/24", "fd00::/8"))


def request(address: str | None, **headers: str) -> Request:
    scope: dict[str, Any] = {
        "type": "http",
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
        "client": (address, 5) if address else None,
    }
    return Request(scope)


@pytest.mark.parametrize(
    ("asked", "caller"),
    [
        pytest.param(request("8.8.8.8"), Caller("address 8.8.8.8", False), id="nobody in particular"),
        pytest.param(request("8.8.8.8", authorization="Bearer secret"), Caller("key shop", True), id="a key"),
        pytest.param(request("8.8.8.8", authorization="bearer secret"), Caller("key shop", True), id="in lower case"),
        pytest.param(request("10.0.0.7", x_user="ann"), Caller("user ann", True), id="a user of a proxy"),
        pytest.param(request("fd00::1", x_user="ann"), Caller("user ann", True), id="of a proxy with IPv6"),
        pytest.param(request("8.8.8.8", x_user="ann"), Caller("address 8.8.8.8", False), id="a stranger's word"),
        pytest.param(
            request("8.8.8.8", x_forwarded_for="1.2.3.4"), Caller("address 8.8.8.8", False), id="a stranger's address"
        ),
        pytest.param(
            request("10.0.0.7", x_forwarded_for="6.6.6.6, 1.2.3.4"),
            Caller("address 1.2.3.4", False),
            id="the address that the proxy saw",
        ),
        pytest.param(request(None, x_user="ann"), Caller("address ", False), id="no address at all"),
    ],
)
def test_are_told_apart(asked: Request, caller: Caller) -> None:
    assert CALLERS.of(asked) == caller


@pytest.mark.parametrize("authorization", ["Bearer guess", "Bearer ", "Basic secret", "secret", "Bearer shop"])
def test_a_key_that_is_not_known_is_refused(authorization: str) -> None:
    with pytest.raises(Problem, match="not a key that is known"):
        CALLERS.of(request("10.0.0.7", authorization=authorization, x_user="ann"))


def test_without_a_header_by_name_no_proxy_names_users() -> None:
    assert not Callers({}, "", ("10.0.0.0/24",)).of(request("10.0.0.7", x_user="ann")).known


def test_each_caller_has_each_rate_of_its_own() -> None:
    async def test() -> None:
        rates = Rates({"search": "2/minute", "photos": ""})
        ann, bob = Caller("user ann", True), Caller("user bob", True)
        for _ in range(2):
            await rates.count("search", ann)
            await rates.count("search", bob)
        with pytest.raises(BusyError) as refused:
            await rates.count("search", ann)
        assert 1 <= refused.value.retry_after_s <= 60
        for _ in range(100):
            await rates.count("photos", ann)
            await rates.count("something else", ann)

    asyncio.run(test())
