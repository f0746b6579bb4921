"""The cluster's network: a namespace for each node, a bridge between them in another namespace, a link from the host.

    host  10.243.0.1 --- switch (bridge) --- node-1 10.243.0.11, pods 10.244.1.0/24
                                        \\--- node-2 10.243.0.12, pods 10.244.2.0/24

The bridge is not in the host's namespace, so the host's packet filter does not affect it. No traffic leaves the
machine: no node has a default route, and the host gets `unreachable` routes for the three ranges first, which take
effect when the better routes are gone. Namespaces are files in the cluster's directory, so `/run/netns` stays
unchanged.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import subprocess
from pathlib import Path
from typing import Any

from uellm_devcluster.addresses import HOST_ADDRESS, NODE_RANGE, RANGES, SERVICE_RANGE, NodeAddress
from uellm_devcluster.errors import ClusterError

SWITCH = "switch"

# Forward the pods' packets, and reject each packet without a route at once, however many there are.
NODE_SETTINGS = "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv4/icmp_ratelimit"


class Network:
    """The network of the cluster `name`, with its namespaces in `directory`."""

    def __init__(self, name: str, directory: Path) -> None:
        self._directory = directory
        digest = hashlib.sha256(name.encode()).hexdigest()
        # Link names have 15 characters at most.
        self.link = f"uellm-{digest[:6]}"
        # Worse than any other route's metric, and different for each cluster, so that `down` removes only its own
        # routes.
        self._metric = 0x40000000 + int(digest[:6], 16)

    def namespace(self, part: str) -> Path:
        """The file of a node's namespace, or of the switch's."""
        return self._directory / part

    def entering(self, part: str, argv: list[str]) -> list[str]:
        """`argv` as a command in the network namespace of `part`."""
        return ["nsenter", f"--net={self.namespace(part)}", "--", *argv]

    def create(self, nodes: list[NodeAddress]) -> None:
        """Create the network. Raises ClusterError where the ranges are in use."""
        check_ranges_free(routes())
        _batch([f"route add unreachable {each} metric {self._metric}" for each in RANGES])
        self._directory.mkdir(exist_ok=True)
        for part in (SWITCH, *(node.name for node in nodes)):
            self._create_namespace(part)
        _batch(host_commands(self.link, self.namespace(SWITCH), nodes))
        for node in nodes:
            _batch(node_commands(node, self.namespace(SWITCH), nodes), enter=self.entering(node.name, []))
            _run(self.entering(node.name, ["sh", "-c", NODE_SETTINGS]))
        _batch(switch_commands(nodes), enter=self.entering(SWITCH, []))

    def remove_links(self) -> None:
        """Remove the host's link and the namespaces, as far as they exist."""
        _batch([f"link delete {self.link}"], force=True)
        for file in self._directory.iterdir() if self._directory.is_dir() else ():
            subprocess.run(["umount", "--lazy", str(file)], capture_output=True, check=False)
            file.unlink()

    def remove_guard(self) -> None:
        """Remove the `unreachable` routes: the last step, when no process of the cluster is left."""
        _batch([f"route del unreachable {each} metric {self._metric}" for each in RANGES], force=True)

    def _create_namespace(self, part: str) -> None:
        file = self.namespace(part)
        file.touch()
        _run(["unshare", f"--net={file}", "--", "true"])


def host_commands(link: str, switch: Path, nodes: list[NodeAddress]) -> list[str]:
    """The host's link to the switch, and its routes to the pods."""
    return [
        f"link add {link} type veth peer name host netns {switch}",
        f"addr add {HOST_ADDRESS}/{NODE_RANGE.prefixlen} dev {link}",
        f"link set {link} up",
        *(f"route add {node.pods} via {node.address}" for node in nodes),
    ]


def node_commands(node: NodeAddress, switch: Path, nodes: list[NodeAddress]) -> list[str]:
    """A node's link, addresses and routes to the other nodes' pods. Services are routed to the host."""
    return [
        f"link add eth0 type veth peer name {node.name} netns {switch}",
        "link set lo up",
        f"addr add {node.address}/{NODE_RANGE.prefixlen} dev eth0",
        "link set eth0 up",
        f"route add {SERVICE_RANGE} via {HOST_ADDRESS}",
        *(f"route add {other.pods} via {other.address}" for other in nodes if other != node),
    ]


def switch_commands(nodes: list[NodeAddress]) -> list[str]:
    """The bridge, in the switch's namespace, between the other ends of all links."""
    ports = ["host", *(node.name for node in nodes)]
    return [
        "link add bridge type bridge",
        *(f"link set {port} master bridge up" for port in ports),
        "link set bridge up",
    ]


def check_ranges_free(known: list[dict[str, Any]]) -> None:
    """Raise ClusterError when the machine already has a route to one of our ranges (a VPN, another cluster)."""
    for route in known:
        destination = route.get("dst", "default")
        if destination == "default" or ":" in destination:
            continue
        taken = ipaddress.ip_network(destination, strict=False)
        if taken.prefixlen and (ours := [each for each in RANGES if each.overlaps(taken)]):
            way = route.get("dev") or route.get("type", "")
            raise ClusterError(
                f"this machine already routes {destination} ({way}), and the cluster needs {ours[0]}: another "
                "cluster runs here, or a VPN uses these addresses"
            )


def routes() -> list[dict[str, Any]]:
    """All IPv4 routes of this machine, as `ip` lists them."""
    parsed: list[dict[str, Any]] = json.loads(
        _run(["ip", "-4", "-json", "route", "show", "table", "all"]).stdout or "[]"
    )
    return parsed


def _batch(commands: list[str], *, enter: list[str] | None = None, force: bool = False) -> None:
    """Run several `ip` commands at once. With `force`, failing ones are skipped."""
    argv = [*(enter or []), "ip", *(["-force"] if force else []), "-batch", "-"]
    _run(argv, given="\n".join(commands) + "\n", check=not force)


def _run(argv: list[str], *, given: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(argv, input=given, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        # Where the program is missing, it cannot have created anything.
        done = subprocess.CompletedProcess(argv, 127, "", "it is not installed")
    if check and done.returncode:
        raise ClusterError(f"`{' '.join(argv)}` failed: {done.stderr.strip().splitlines()[0] if done.stderr else ''}")
    return done
