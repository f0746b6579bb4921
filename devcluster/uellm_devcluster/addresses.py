"""The cluster's addresses: private ranges that exist only in the cluster's own namespaces."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

NODE_RANGE = ipaddress.ip_network("10.243.0.0/24")
POD_RANGE = ipaddress.ip_network("10.244.0.0/16")
SERVICE_RANGE = ipaddress.ip_network("10.96.0.0/16")
RANGES = (NODE_RANGE, POD_RANGE, SERVICE_RANGE)
LOOPBACK = "127.0.0.1"
API_PORT = 6443

# Pods simulated by kwok do not run, yet the operator tries to reach them. Their addresses must not lead to another
# machine. Where the cluster has no network of its own they are loopback addresses, so a test may listen there in a
# pod's place. Otherwise they are a part of the pods' range that no node has a route to.
KWOK_LOOPBACK_PODS = "127.244.0.0/16"
KWOK_PODS = "10.244.128.0/17"
# Nodes 1 to MAX_NODES have a /24 of pods each. They lie below the range that kwok uses.
MAX_NODES = 100


@dataclass(frozen=True)
class NodeAddress:
    """Name and addresses of a real node, derived from its number (1, 2, ...)."""

    index: int

    @property
    def name(self) -> str:
        """`node-1`."""
        return f"node-{self.index}"

    @property
    def address(self) -> str:
        """The node's own address: 10.243.0.11 for the first."""
        return str(NODE_RANGE[10 + self.index])

    @property
    def pods(self) -> str:
        """The range of its pods' addresses."""
        return f"10.244.{self.index}.0/24"


HOST_ADDRESS = str(NODE_RANGE[1])
SERVICE_ADDRESS = str(SERVICE_RANGE[1])


def nodes(count: int) -> list[NodeAddress]:
    """The addresses of nodes 1 to `count`."""
    return [NodeAddress(index) for index in range(1, count + 1)]
