"""Which pod has which device: the kubelet's PodResources API, the same on real nodes and on described ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import grpc

from uellm.errors import CannotBeDone
from uellm.profiler.kubelet import podresources_pb2 as api
from uellm.profiler.kubelet.podresources_pb2_grpc import PodResourcesListerStub

SOCKET = "/var/lib/kubelet/pod-resources/kubelet.sock"
TIMEOUT_S = 3.0
CHANNEL_OPTIONS = (
    ("grpc.default_authority", "localhost"),  # Go's servers refuse the path of a socket as an authority
    ("grpc.enable_http_proxy", 0),
    # Reconnect to a restarted kubelet within a second; gRPC's default waits up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", 16 * 2**20),  # what the kubelet's own client allows
)


class KubeletSilent(CannotBeDone):
    """The kubelet does not answer; it may be restarting."""


class PodKey(NamedTuple):
    """A pod as the PodResources API names it: without UID."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class DeviceId(NamedTuple):
    """A device as its device plugin or DRA driver names it to the kubelet."""

    resource: str
    """The extended resource by which pods ask for it (`nvidia.com/gpu`), or the DRA driver (`gpu.nvidia.com`)."""
    name: str

    @property
    def claimed(self) -> bool:
        """Whether a DRA driver names it. Extended resources have a slash in their names, drivers none."""
        return "/" not in self.resource


@dataclass(frozen=True)
class Listed:
    """The kubelet's list: which pod has which device. `pods`: all that it knows, with devices or without."""

    devices: Mapping[DeviceId, PodKey] = field(default_factory=dict)
    pods: frozenset[PodKey] = frozenset()


@dataclass(frozen=True)
class Held:
    """Which pod has which device, by the device's UUID. `pods`: all pods that the kubelet knows."""

    devices: Mapping[str, PodKey] = field(default_factory=dict)
    pods: frozenset[PodKey] = frozenset()
    unmatched: tuple[PodKey, ...] = ()
    """Pods that have GPUs by names which are none of the devices'."""
    unclear: tuple[str, ...] = ()
    """The devices that these pods may have."""


class Kubelet(Protocol):
    """The part of `PodResources` that the profiler needs all the time."""

    async def held(self) -> Listed: ...  # noqa: D102
    async def allocatable(self) -> frozenset[DeviceId]: ...  # noqa: D102


class PodResources:
    """A client of the kubelet's PodResources socket. Call `close` at the end."""

    def __init__(self, socket: str = SOCKET) -> None:
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options=CHANNEL_OPTIONS)
        self._stub = PodResourcesListerStub(self._channel)
        self._socket = socket

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def held(self) -> Listed:
        """Every device that a pod has. Raises KubeletSilent."""
        answer = await self._call(self._stub.List, api.ListPodResourcesRequest())
        devices: dict[DeviceId, PodKey] = {}
        for pod in sorted(answer.pod_resources, key=lambda pod: (pod.namespace, pod.name)):
            for container in pod.containers:
                for resource in container.devices:
                    for name in resource.device_ids:
                        devices.setdefault(DeviceId(resource.resource_name, name), PodKey(pod.namespace, pod.name))
                for claim in container.dynamic_resources:
                    for device in claim.claim_resources:
                        key = DeviceId(device.driver_name, device.device_name)
                        devices.setdefault(key, PodKey(pod.namespace, pod.name))
        return Listed(devices, frozenset(PodKey(pod.namespace, pod.name) for pod in answer.pod_resources))

    async def allocatable(self) -> frozenset[DeviceId]:
        """The devices that pods can get or have: those that their plugin calls healthy. Raises KubeletSilent."""
        answer = await self._call(self._stub.GetAllocatableResources, api.AllocatableResourcesRequest())
        return frozenset(DeviceId(entry.resource_name, name) for entry in answer.devices for name in entry.device_ids)

    async def _call(self, method: grpc.aio.UnaryUnaryMultiCallable, request: object) -> grpc.aio.UnaryUnaryCall:
        try:
            return await method(request, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            # gRPC's text repeats the address four times; the system's error is at its end.
            cause = (error.details() or "").rsplit("error: ", 1)[-1]
            raise KubeletSilent(
                f"the kubelet does not answer at {self._socket}: {error.code().name.lower()}, {cause}"
            ) from error
