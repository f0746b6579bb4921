"""/run/uellm/placement.json: which devices and layers a pod's engine really runs on, or why it could not start.

Written by the launcher, passed on unread by the sidecar (GET /uellm/placement), read by the controller. A failure is
also the container's termination message, which the controller reads from the pod's status.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from uellm.documents import VERSION, reading

_NAME = "the placement report"


@dataclass(frozen=True, slots=True)
class BoundDevice:
    """A device that the engine uses."""

    uuid: str
    product: str = ""
    memory_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """`devices[]`."""
        return {"uuid": self.uuid, "product": self.product, "memoryBytes": self.memory_bytes}


LOG_PREFIX = "uellm launcher: "
"""How the launcher begins its lines in the log and its termination message."""

ENGINE_FAILED = "EngineFailed"
"""The reason where the engine was started and ended by itself."""
ENGINE_TOO_OLD = "EngineTooOld"
GROUP_DIFFERS = "GroupDiffers"
"""The pods of a replica that spans nodes do not run the same, or one of them refuses its part."""
GROUP_INCOMPLETE = "GroupIncomplete"
"""They did not find each other in time."""
GROUP_BROKEN = "GroupBroken"
"""One of them ended while the engine was being started, or ran."""

_FAILURE = re.compile(rf"{LOG_PREFIX}(?P<reason>[A-Z][A-Za-z0-9]*): (?P<message>.*)")


@dataclass(frozen=True, slots=True)
class LaunchFailure:
    """Why there is no engine."""

    reason: str
    """In CamelCase, as a condition has it."""
    message: str

    def to_line(self) -> str:
        """The first line of the container's termination message."""
        return f"{LOG_PREFIX}{self.reason}: {self.message}"

    @classmethod
    def from_termination_message(cls, text: str) -> LaunchFailure | None:
        """The failure that a termination message begins with; None where the launcher did not write it."""
        found = _FAILURE.match(text.strip())
        return None if found is None else cls(found["reason"], found["message"].strip())


@dataclass(frozen=True, slots=True)
class PlacementReport:
    """What the launcher did in one start of the engine's container."""

    pod: str = ""
    node: str = ""
    plan_hash: str = ""
    """SHA-256 of the plan.json that was read."""
    source: str = ""
    """What named the devices: nvidia-smi or NVIDIA_VISIBLE_DEVICES."""
    platform: str = ""
    devices: tuple[BoundDevice, ...] = ()
    """In rank order."""
    layers: tuple[int, ...] = ()
    """By stage."""
    tensor: int = 0
    pipeline: int = 0
    planned: tuple[str, ...] = ()
    """Uuids of the devices that the plan meant for the first replica."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables that the launcher set."""
    argv: tuple[str, ...] = ()
    error: LaunchFailure | None = None
    """Where this is set, only the pod, its node and the plan's hash are."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        whose = {"version": VERSION, "pod": self.pod, "node": self.node, "planHash": self.plan_hash}
        if self.error is not None:
            return {**whose, "error": {"reason": self.error.reason, "message": self.error.message}}
        return {
            **whose,
            "source": self.source,
            "platform": self.platform,
            "devices": [device.to_dict() for device in self.devices],
            "layers": list(self.layers),
            "tensor": self.tensor,
            "pipeline": self.pipeline,
            "planned": list(self.planned),
            "env": dict(self.env),
            "argv": list(self.argv),
        }

    @classmethod
    def from_dict(cls, document: Any) -> PlacementReport:
        """The inverse of `to_dict`. Raises UnreadableDocument for another version.

        The report comes out of a pod, so a field of the wrong type counts as absent.
        """
        with reading(_NAME, document) as data:
            error = data.get("error")
            return cls(
                pod=_text(data.get("pod")),
                node=_text(data.get("node")),
                plan_hash=_text(data.get("planHash")),
                source=_text(data.get("source")),
                platform=_text(data.get("platform")),
                devices=tuple(
                    BoundDevice(device["uuid"], _text(device.get("product")), _count(device.get("memoryBytes")))
                    for device in _list(data.get("devices"))
                    if isinstance(device, Mapping) and isinstance(device.get("uuid"), str)
                ),
                layers=tuple(_count(layers) for layers in _list(data.get("layers"))),
                tensor=_count(data.get("tensor")),
                pipeline=_count(data.get("pipeline")),
                planned=tuple(uuid for uuid in _list(data.get("planned")) if isinstance(uuid, str)),
                env={str(name): str(value) for name, value in _mapping(data.get("env")).items()},
                argv=tuple(str(argument) for argument in _list(data.get("argv"))),
                error=LaunchFailure(_text(error.get("reason")), _text(error.get("message")))
                if isinstance(error, Mapping)
                else None,
            )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
