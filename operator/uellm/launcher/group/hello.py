"""What a pod tells the leader of its group about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uellm.launcher.group.wire import PeerGone

VERSION = 1


@dataclass(frozen=True, slots=True)
class Hello:
    """A pod of the group, what it runs, and the devices that it has."""

    leader: str
    """By which the group is known."""
    index: int
    pod: str
    node: str
    plan: str
    """SHA-256 of its plan.json."""
    engine: str
    """Version of its vLLM."""
    launcher: str
    """SHA-256 of what places the layers."""
    uuids: tuple[str, ...]
    source: str
    facts: str
    """What its driver says of its devices, in the form of devices.json."""

    @property
    def name(self) -> str:
        """For messages."""
        return f"pod {self.pod or self.index} on node {self.node or 'unknown'}"

    def to_dict(self) -> dict[str, Any]:
        """The document."""
        return {
            "version": VERSION,
            "leader": self.leader,
            "index": self.index,
            "pod": self.pod,
            "node": self.node,
            "plan": self.plan,
            "engine": self.engine,
            "launcher": self.launcher,
            "uuids": list(self.uuids),
            "source": self.source,
            "facts": self.facts,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Hello:
        """The inverse of `to_dict`. Raises PeerGone for anything else."""
        try:
            if data["version"] != VERSION:
                raise ValueError(data["version"])
            return cls(
                leader=str(data["leader"]),
                index=int(data["index"]),
                pod=str(data["pod"]),
                node=str(data["node"]),
                plan=str(data["plan"]),
                engine=str(data["engine"]),
                launcher=str(data["launcher"]),
                uuids=tuple(map(str, data["uuids"])),
                source=str(data["source"]),
                facts=str(data["facts"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PeerGone("it did not say who it is") from error


def difference(worker: Hello, leader: Hello) -> str:
    """How a pod differs from the leader, so that the two cannot form one engine; empty where it does not."""
    pairs = (
        ("runs the plan", worker.plan[:12], leader.plan[:12], "a rollout has mixed them: delete the older pod"),
        ("has vLLM", worker.engine, leader.engine, "set spec.engine.image to one image, by its digest"),
        ("has the launcher", worker.launcher[:12], leader.launcher[:12], "both are to have the same launcher image"),
    )
    for what, theirs, ours, remedy in pairs:
        if theirs != ours:
            return f"{worker.name} {what} {theirs}, and its leader, {leader.name}, has {ours}: {remedy}"
    return ""
