"""Which pod of its group this is, by LeaderWorkerSet's variables, and how the others reach it."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from uellm.errors import PlanError
from uellm.placement_report import GROUP_DIFFERS
from uellm.pod_interface import POD_IP_VARIABLE

LEADER_VARIABLE, SIZE_VARIABLE, INDEX_VARIABLE = "LWS_LEADER_ADDRESS", "LWS_GROUP_SIZE", "LWS_WORKER_INDEX"
NOT_IN_GROUP = "NotInGroup"
_SIOCGIFADDR = 0x8915
_IF_INET6 = Path("/proc/net/if_inet6")


@dataclass(frozen=True, slots=True)
class Membership:
    """This pod's place in its group."""

    leader: str
    """Name of the leader's pod in DNS, the same in all pods of the group."""
    size: int
    index: int
    address: str
    """This pod's IP address."""

    @property
    def leads(self) -> bool:
        """Whether it is the first pod: the one with the sidecar."""
        return self.index == 0


def follows(environment: Mapping[str, str]) -> bool | None:
    """Whether the pod has a leader; None where it is not one of several that form a replica."""
    size = environment.get(SIZE_VARIABLE) or ""
    if not size.isdecimal() or int(size) == 1:
        return None
    return environment.get(INDEX_VARIABLE) not in (None, "", "0")


def membership(environment: Mapping[str, str], nodes: int) -> Membership:
    """This pod's place in a group of as many pods as the plan has nodes. Raises PlanError."""
    names = (LEADER_VARIABLE, SIZE_VARIABLE, INDEX_VARIABLE, POD_IP_VARIABLE)
    if missing := [name for name in names if not environment.get(name)]:
        raise PlanError(
            NOT_IN_GROUP,
            f"the plan is for {nodes} nodes and {' and '.join(missing)} is not set: the pod is to be one of a "
            "LeaderWorkerSet, whose webhook sets LWS_...; see that its controller runs",
        )
    size, index = environment[SIZE_VARIABLE], environment[INDEX_VARIABLE]
    if not (size.isdecimal() and index.isdecimal() and int(index) < int(size)):
        raise PlanError(NOT_IN_GROUP, f"{SIZE_VARIABLE} is {size!r} and {INDEX_VARIABLE} is {index!r}")
    if int(size) != nodes:
        raise PlanError(GROUP_DIFFERS, f"the plan is for {nodes} nodes and the group has {size} pods")
    return Membership(environment[LEADER_VARIABLE], int(size), int(index), environment[POD_IP_VARIABLE])


def interface_of(address: str) -> str:
    """The network interface that has the address. Raises PlanError."""
    wanted = ipaddress.ip_address(address)
    for name, held in _addresses():
        if held == wanted:
            return name
    raise PlanError(NOT_IN_GROUP, f"no network interface of the pod has its address {address}")


Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _addresses() -> Iterator[tuple[str, Address]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an IPv4 address
                answer = fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                yield name, ipaddress.IPv4Address(answer[20:24])
    with suppress(OSError):  # a kernel without IPv6
        for line in _IF_INET6.read_text().splitlines():
            digits, *_, name = line.split()
            yield name, ipaddress.IPv6Address(bytes.fromhex(digits))
