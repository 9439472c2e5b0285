"""Who asks: by an API key, by a reverse proxy's word, or nobody in particular; and how often each may."""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_address, ip_network

from fastapi import Request
from limits import RateLimitItem, parse
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter

from listing_lens.serving.limits import BusyError
from listing_lens.serving.problems import Problem

_SCHEME = "bearer"


@dataclass(frozen=True)
class Caller:
    """Whoever sent a request.

    Attributes:
        name: a key's or a user's name; an address if there is neither.
        known: whether it is a key's or a user's.
    """

    name: str
    known: bool

    def require_known(self, what: str) -> None:
        """Raise Problem unless it is a key's or a user's: `what` is not for everybody."""
        if not self.known:
            raise Problem(403, "Not allowed", f"authorization: {what} need an API key", "authorization")


@dataclass(frozen=True)
class Callers:
    """Tells callers by their keys, or by a header that a trusted proxy sets.

    Attributes:
        keys: SHA-256 of each key in hexadecimal digits, by name.
        user_header: the header in which a proxy names the user; "" for none.
        proxies: the networks of proxies whose headers are believed.
    """

    keys: Mapping[str, str]
    user_header: str = ""
    proxies: tuple[str, ...] = ()

    def of(self, request: Request) -> Caller:
        """The caller of a request. Raises Problem for a key that is not known."""
        if authorization := request.headers.get("authorization"):
            scheme, _, key = authorization.partition(" ")
            name = self._name_of(key.strip()) if scheme.lower() == _SCHEME else None
            if name is None:
                raise Problem(401, "Not identified", "authorization: not a key that is known", "authorization")
            return Caller(f"key {name}", known=True)
        address = request.client.host if request.client else ""
        if self._is_proxy(address):
            if self.user_header and (user := request.headers.get(self.user_header)):
                return Caller(f"user {user[:200]}", known=True)
            # The last address is the one that the proxy itself saw.
            address = request.headers.get("x-forwarded-for", address).rpartition(",")[2].strip()
        return Caller(f"address {address[:50]}", known=False)

    def _name_of(self, key: str) -> str | None:
        digest = sha256(key.encode()).hexdigest()
        # All are compared, each in constant time.
        found = [name for name, known in self.keys.items() if hmac.compare_digest(digest, known.lower())]
        return found[0] if found else None

    def _is_proxy(self, address: str) -> bool:
        try:
            return any(ip_address(address) in ip_network(proxy) for proxy in self.proxies)
        except ValueError:
            return False


class Rates:
    """How often each caller may ask, by what for."""

    def __init__(self, allowed: Mapping[str, str]) -> None:
        self._limits: dict[str, RateLimitItem] = {what: parse(rate) for what, rate in allowed.items() if rate}
        self._windows = MovingWindowRateLimiter(MemoryStorage())

    async def count(self, what: str, caller: Caller) -> None:
        """Count a request. Raises BusyError when the caller has asked too often."""
        limit = self._limits.get(what)
        if limit is None or await self._windows.hit(limit, what, caller.name):
            return
        window = await self._windows.get_window_stats(limit, what, caller.name)
        raise BusyError(f"more than {limit} for {what}", max(1.0, window.reset_time - time.time()))
