"""Nodes simulated by kwok: Node objects that are Ready and whose pods run at once, without a machine behind them."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from uellm_devcluster.addresses import LOOPBACK
from uellm_devcluster.api import Api

_STAGES = (
    "node-initialize",
    "node-heartbeat-with-lease",
    "pod-ready",
    "pod-complete",
    "pod-delete",
)
_CAPACITY = {"cpu": "32", "memory": "256Gi", "pods": "110", "ephemeral-storage": "1Ti"}


def write_stages(path: Path) -> None:
    """Write kwok's configuration: the life cycle of its nodes and pods."""
    directory = files("uellm_devcluster") / "stages"
    path.write_text("---\n".join((directory / f"{stage}.yaml").read_text() for stage in _STAGES))


def node(index: int, *, tainted: bool) -> dict[str, Any]:
    """The Node `kwok-<index>`. `tainted` keeps pods that must really run off it, where there are also real nodes."""
    name = f"kwok-{index}"
    taint = {"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                "type": "kwok",
            },
        },
        "spec": {"taints": [taint]} if tainted else {},
        "status": {
            "capacity": _CAPACITY,
            "allocatable": _CAPACITY,
            "addresses": [{"type": "InternalIP", "address": LOOPBACK}, {"type": "Hostname", "address": name}],
        },
    }


def create_nodes(api: Api, count: int, *, tainted: bool) -> None:
    """Create nodes kwok-0 to kwok-<count - 1>. Existing ones are left unchanged."""
    for index in range(count):
        api.create("/api/v1/nodes", node(index, tainted=tainted))
