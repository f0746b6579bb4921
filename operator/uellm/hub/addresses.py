"""Which addresses a look-up may connect to.

A hub redirects to where its files are. A repository is somebody else's, so a redirect must not lead into the network
that the operator runs in: only public addresses are connected to, but for the endpoint that the administrator set.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

_NAT64 = IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class AddressRefused:
    """The host has an address that is not public."""

    address: str


@dataclass(frozen=True)
class NoAddress:
    """The host has no address at all."""


def public_address(host: str, port: int) -> str | AddressRefused | NoAddress:
    """An address of the host to connect to. A host with any address that is not public is refused."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return NoAddress()
    addresses = [str(entry[4][0]) for entry in found]
    bad = next((each for each in addresses if not is_public(each)), None)
    return AddressRefused(bad) if bad is not None else addresses[0]


def is_public(text: str) -> bool:
    """Whether an address is one of the public internet; False for what is no address."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return False
    inner = _inside(address) if isinstance(address, IPv6Address) else None
    return (inner or address).is_global and not (inner or address).is_multicast


def _inside(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 one stands for."""
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
