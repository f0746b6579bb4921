"""From a plan for several nodes to this pod's engine: the leader places the layers, and all agree on it."""

from __future__ import annotations

import hashlib
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from uellm.documents import UnreadableDocument
from uellm.errors import PlanError
from uellm.launcher.bind import check, command_of
from uellm.launcher.command import EngineCommand
from uellm.launcher.devices import FoundDevices, find_devices
from uellm.launcher.engine_version import check_engine, engine_version
from uellm.launcher.group.hello import Hello
from uellm.launcher.group.leader import Gathering
from uellm.launcher.group.membership import Membership, interface_of, membership
from uellm.launcher.group.part import GroupPart, from_document, shared_digest, to_document
from uellm.launcher.group.worker import Following
from uellm.placement_report import GROUP_DIFFERS
from uellm.planner.handover.device_facts import DeviceFacts
from uellm.planner.handover.group_binding import PodDevices, bind_group
from uellm.planner.handover.late_binding import Binding
from uellm.planner.handover.plan_document import PlanDocument
from uellm.pod_interface import GROUP_MASTER_PORT, GROUP_PORT

Connections = tuple[tuple[str, socket.socket], ...]


@dataclass(frozen=True)
class GroupOptions:
    """How the pods of a group find each other."""

    timeout_s: float
    """For which they wait for each other."""
    port: int = GROUP_PORT
    master_port: int = GROUP_MASTER_PORT


@dataclass(frozen=True)
class Agreement:
    """What the group agreed on, and the connections that show that its pods are there."""

    found: FoundDevices
    binding: Binding
    command: EngineCommand
    connections: Connections


def agree(
    document: PlanDocument,
    advice: DeviceFacts,
    plan_hash: str,
    *,
    listen: tuple[str, int],
    environment: Mapping[str, str],
    options: GroupOptions,
) -> Agreement:
    """Agree with the other pods of the group. Raises PlanError where they do not come, or differ."""
    place = membership(environment, document.nodes)
    found = find_devices(environment, simulated=document.platform == "cpu")
    own = _hello(place, found, plan_hash, environment)

    def command(binding: Binding, master: str) -> EngineCommand:
        part = GroupPart(
            place.index, document.nodes, master, options.master_port, place.address, interface_of(place.address)
        )
        if part.own(binding) and set(part.own(binding)) != set(found.uuids):
            raise PlanError(GROUP_DIFFERS, f"the leader placed layers on other GPUs than those of pod {own.pod}")
        made = command_of(document, binding, listen=listen, environment=environment, part=part)
        check_engine(made.argv)
        return made

    if place.leads:
        with Gathering(own, place, options.port, options.timeout_s) as group:
            hellos = group.hear()
            binding = bind_group(document, [_devices(each) for each in hellos], advice=advice)
            uuids = [uuid for each in hellos for uuid in each.uuids]
            check(binding, uuids, layers=len(document.task.layer_bytes))
            made = command(binding, place.address)
            connections: Connections = group.tell(to_document(binding, place.address), lambda: _digest(made))
            return Agreement(found, binding, made, connections)
    with Following(own, place, options.port, options.timeout_s) as leader:
        binding, master = from_document(leader.placement())
        made = command(binding, master)
        return Agreement(found, binding, made, (leader.confirm(_digest(made)),))


def _digest(command: EngineCommand) -> str:
    return shared_digest(command.argv, command.environment)


def _hello(place: Membership, found: FoundDevices, plan_hash: str, environment: Mapping[str, str]) -> Hello:
    return Hello(
        leader=place.leader,
        index=place.index,
        pod=environment.get("POD_NAME", ""),
        node=environment.get("NODE_NAME", ""),
        plan=plan_hash,
        engine=engine_version(),
        launcher=_own_digest(),
        uuids=found.uuids,
        source=found.source,
        facts=found.facts.to_json(),
    )


def _devices(hello: Hello) -> PodDevices:
    try:
        return PodDevices(hello.pod, hello.uuids, DeviceFacts.from_json(hello.facts, hello.name))
    except UnreadableDocument as error:
        raise PlanError(GROUP_DIFFERS, str(error)) from error


def _own_digest(program: Sequence[str] = sys.argv) -> str:
    """Of the zipapp that runs; empty where it is none."""
    try:
        return hashlib.sha256(Path(program[0]).read_bytes()).hexdigest()
    except (OSError, IndexError):
        return ""
