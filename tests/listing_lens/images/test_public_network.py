"""Which addresses are public: the list of those that are not is long, and each that is missed is a way in."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listing_lens.images.public_network import is_public, system_resolver

# Networks that are not public, whatever else changes (IANA's special-purpose registries, and deprecated ones).
NOT_PUBLIC_4 = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.2.0/24"),
    *("192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
)
NOT_PUBLIC_6 = (
    *("::/128", "::1/128", "::/96", "64:ff9b:1::/48", "100::/64", "2001::/32", "2001:db8::/32"),
    *("fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
)


def addresses_of(network: str) -> st.SearchStrategy[IPv4Address] | st.SearchStrategy[IPv6Address]:
    return st.ip_addresses(network=network)


private_4 = st.sampled_from(NOT_PUBLIC_4).flatmap(addresses_of)


@given(st.sampled_from(NOT_PUBLIC_4 + NOT_PUBLIC_6).flatmap(addresses_of))
def test_special_networks_are_not_public(address: IPv4Address | IPv6Address) -> None:
    assert not is_public(address)


@given(private_4)
def test_nor_is_what_carries_an_address_of_them(address: IPv4Address) -> None:
    low = int(address)
    for carrier in (
        IPv6Address(int(IPv6Address("::ffff:0:0")) + low),
        IPv6Address(int(IPv6Address("64:ff9b::")) + low),
        IPv6Address(int(IPv6Address("2002::")) + (low << 80) + 1),
    ):
        assert not is_public(carrier)


@pytest.mark.parametrize(
    "address",
    [
        *(
            "8.8.8.8",
            "93.184.215.14",
            "172.15.255.255",
            "172.32.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "223.255.255.255",
        ),
        *("2001:4860:4860::8888", "2a00:1450::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"),
    ],
)
def test_the_internet_is_public(address: str) -> None:
    assert is_public(ip_address(address))


def test_the_metadata_servers_of_clouds_are_not_public() -> None:
    for address in ("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "fe80::a9fe:a9fe%eth0"):
        assert not is_public(ip_address(address))


@pytest.mark.parametrize("host", ["localhost", "127.1", "0x7f000001", "2130706433", "017700000001", "::1"])
def test_this_machine_is_told_as_itself_in_every_notation(host: str) -> None:
    found = system_resolver(host, 80)
    assert found
    loopback = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
    assert all(any(ip_address(address) in network for network in loopback) for address in found)
