from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from uellm_devcluster import network
from uellm_devcluster.addresses import nodes
from uellm_devcluster.errors import ClusterError
from uellm_devcluster.network import Network


def test_no_node_has_a_default_route() -> None:
    members = nodes(3)
    commands = [line for node in members for line in network.node_commands(node, Path("/net/switch"), members)]
    assert not any("default" in line for line in commands)


def test_every_node_has_routes_to_the_other_nodes_pods_only() -> None:
    first, second, third = nodes(3)
    commands = network.node_commands(first, Path("/net/switch"), [first, second, third])
    assert "route add 10.244.2.0/24 via 10.243.0.12" in commands
    assert "route add 10.244.3.0/24 via 10.243.0.13" in commands
    assert not any("10.244.1.0/24" in line for line in commands)


def test_the_switch_joins_the_host_and_every_node() -> None:
    commands = network.switch_commands(nodes(2))
    for port in ("host", "node-1", "node-2"):
        assert f"link set {port} master bridge up" in commands


def test_the_hosts_link_is_named_by_the_cluster_and_fits(tmp_path: Path) -> None:
    names = {Network(name, tmp_path).link for name in ("uellm", "other", "a-rather-long-name-for-a-cluster")}
    assert len(names) == 3
    assert all(len(name) <= 15 for name in names)


@pytest.mark.parametrize("taken", ["10.243.0.0/24", "10.244.7.0/24", "10.0.0.0/8", "10.96.0.1"])
def test_a_range_in_use_is_refused_with_its_name(taken: str) -> None:
    with pytest.raises(ClusterError, match=taken.replace(".", r"\.")):
        network.check_ranges_free([{"dst": taken, "dev": "tun0"}])


def test_ordinary_routes_do_not_conflict() -> None:
    routes: list[dict[str, Any]] = [
        {"dst": "default", "dev": "eth0"},
        {"dst": "192.168.1.0/24", "dev": "eth0"},
        {"dst": "127.0.0.0/8", "dev": "lo", "type": "local"},
        {"dst": "10.97.0.0/16", "dev": "eth1"},
    ]
    network.check_ranges_free(routes)
