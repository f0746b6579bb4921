"""This pod's part in an engine that spans nodes, and what its engine is told of it. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uellm.errors import PlanError
from uellm.hardware import Device
from uellm.placement_report import GROUP_DIFFERS
from uellm.planner.handover.late_binding import Binding

_OWN_FLAGS = {"--node-rank": 2, "--headless": 1}
"""Flags that differ between the pods, with the number of arguments that they take up."""
PARTITION = "VLLM_PP_LAYER_PARTITION"


@dataclass(frozen=True, slots=True)
class GroupPart:
    """Where this pod is among the nodes of the engine. Node order is stage order."""

    rank: int
    nodes: int
    master: str
    """Address of the first node's pod."""
    port: int
    address: str
    """This pod's."""
    interface: str

    def own(self, binding: Binding) -> tuple[str, ...]:
        """Its devices, in rank order."""
        count = len(binding.order) // self.nodes
        return binding.order[self.rank * count : (self.rank + 1) * count]

    def flags(self) -> list[str]:
        """The engine's flags."""
        shared = ["--nnodes", str(self.nodes), "--master-addr", self.master, "--master-port", str(self.port)]
        # Which rank is on which node is ours to say with this backend alone.
        shared += ["--distributed-executor-backend", "mp"]
        return [*shared, "--node-rank", str(self.rank), *(["--headless"] if self.rank else [])]

    def decided(self) -> dict[str, str]:
        """Variables that nobody else may set."""
        return {"VLLM_HOST_IP": self.address}

    def defaults(self) -> dict[str, str]:
        """Variables that the user may set otherwise, such as for RDMA."""
        return {"GLOO_SOCKET_IFNAME": self.interface, "NCCL_SOCKET_IFNAME": self.interface}


def shared_digest(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """Digest of what all pods of the engine must be started with alike."""
    kept, skip = [], 0
    for argument in argv[1:]:
        skip = skip or _OWN_FLAGS.get(argument, 0)
        if skip:
            skip -= 1
        else:
            kept.append(argument)
    text = json.dumps([kept, environment.get(PARTITION, "")])
    return hashlib.sha256(text.encode()).hexdigest()


def to_document(binding: Binding, master: str) -> dict[str, Any]:
    """The placement as the leader sends it."""
    return {
        "master": master,
        "order": list(binding.order),
        "layers": list(binding.layers),
        "tensor": binding.tensor,
        "pipeline": binding.pipeline,
        "kvCacheBytes": binding.kv_cache_bytes,
        "devices": [device.to_dict() for device in binding.devices],
    }


def from_document(data: Mapping[str, Any]) -> tuple[Binding, str]:
    """The inverse. Raises PlanError."""
    try:
        binding = Binding(
            tuple(map(str, data["order"])),
            tuple(int(count) for count in data["layers"]),
            int(data["tensor"]),
            int(data["pipeline"]),
            None if data["kvCacheBytes"] is None else int(data["kvCacheBytes"]),
            tuple(map(Device.from_dict, data["devices"])),
        )
        return binding, str(data["master"])
    except (KeyError, TypeError, ValueError) as error:
        raise PlanError(GROUP_DIFFERS, f"the leader's placement cannot be read: {error!r}") from error
