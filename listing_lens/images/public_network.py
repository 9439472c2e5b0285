"""Connections for URLs that strangers wrote: only to public addresses, and to private networks that are allowed by name."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from ssl import SSLContext
from typing import Any

import httpcore

# The IP addresses, as text, of a host name and port.
Resolver = Callable[[str, int], Sequence[str]]

# IPv4 seen through a translator (RFC 6052).
_NAT64 = IPv6Network("64:ff9b::/96")
# Deprecated private networks (RFC 3879), which `is_global` takes for public ones.
_SITE_LOCAL = IPv6Network("fec0::/10")


class AddressRefusedError(Exception):
    """A host has an address that is neither public nor in an allowed network."""


class PublicNetwork(httpcore.NetworkBackend):
    """httpcore's network, closed to addresses that are not public.

    A host name is looked up here, once, and the connection goes to an address that was checked: a name that resolves to
    another address next time ("DNS rebinding") gains nothing. TLS still checks the certificate against the name.

    A request's timeouts are read as a deadline, by `clock`, for the whole request: httpcore passes them on as they are,
    and a limit on each wait alone would let a server drip forever. Each wait is limited to `wait_s` as well.
    """

    def __init__(
        self,
        private_networks: Sequence[IPv4Network | IPv6Network],
        wait_s: float,
        resolve: Resolver,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._private_networks = private_networks
        self._resolve = resolve
        self._waits = _Waits(wait_s, clock)
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first of the host's addresses that answers.

        Raises:
            AddressRefusedError: one of the addresses is not allowed; then none is tried.
            httpcore.ConnectError: there is none, or none answers.
            httpcore.TimeoutException: not in time.
        """
        failure: httpcore.NetworkError | httpcore.TimeoutException = httpcore.ConnectError(f"{host} has no address")
        for address in self._judged_addresses(host, port, timeout):
            wait_s = self._waits.until(timeout)
            try:
                stream = self._backend.connect_tcp(str(address), port, wait_s, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as err:
                failure = err
            else:
                return _TimedStream(stream, self._waits)
        raise failure

    def _judged_addresses(self, host: str, port: int, deadline: float | None) -> list[IPv4Address | IPv6Address]:
        addresses = [ip_address(address) for address in self._look_up(host, port, deadline)]
        for address in addresses:
            if not (is_public(address) or any(_meant(address) in network for network in self._private_networks)):
                raise AddressRefusedError(
                    f"{host} has the address {address}, which is not public: "
                    "if images may be read there, name its network in LENS_IMAGE_PRIVATE_NETWORKS"
                )
        return addresses

    def _look_up(self, host: str, port: int, deadline: float | None) -> Sequence[str]:
        # The system's lookup takes no timeout. A thread stuck in it ends by the resolver's own limits.
        thread = ThreadPoolExecutor(1, thread_name_prefix="look-up")
        looked_up = thread.submit(self._resolve, host, port)
        thread.shutdown(wait=False)
        try:
            return looked_up.result(self._waits.until(deadline))
        except TimeoutError as err:
            raise httpcore.ConnectTimeout(f"{host} was not looked up in time") from err
        except OSError as err:
            raise httpcore.ConnectError(f"{host} cannot be looked up: {err.strerror}") from err


def system_resolver(host: str, port: int) -> list[str]:
    """A host's addresses as this machine resolves them; numbers in any notation that it accepts (0x7f.1) are addresses too.

    Raises:
        OSError: there are none, or no name server answers.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is on the public internet. One that embeds an IPv4 address is judged by that address."""
    meant = _meant(address)
    return (
        meant.is_global
        and not (meant.is_multicast or meant.is_reserved or meant.is_unspecified)
        and meant not in _SITE_LOCAL
    )


def _meant(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


@dataclass(frozen=True)
class _Waits:
    """How long one wait may take: `longest_s`, and no longer than to the request's deadline."""

    longest_s: float
    clock: Callable[[], float]

    def until(self, deadline: float | None) -> float:
        if deadline is None:
            return self.longest_s
        left_s = deadline - self.clock()
        if left_s <= 0:
            raise httpcore.TimeoutException("out of time")
        return min(self.longest_s, left_s)


class _TimedStream(httpcore.NetworkStream):
    """A stream whose waits are limited."""

    def __init__(self, stream: httpcore.NetworkStream, waits: _Waits) -> None:
        self._stream = stream
        self._waits = waits

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._waits.until(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._waits.until(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, self._waits.until(timeout))
        return _TimedStream(stream, self._waits)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
