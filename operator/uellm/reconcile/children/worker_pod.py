"""The pod of a replica that spans nodes, on each of its nodes but the first: an engine without a sidecar. Pure.

Its launcher gets its part from that of the leader, and its engine takes no requests. Nobody probes it: it ends where
the leader ends, or where its own engine does, and then the group is started anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uellm.reconcile.children.desired_state import DesiredState
from uellm.reconcile.children.merge import merge_template
from uellm.reconcile.children.pod import own_template, with_revision

SIDECAR = "sidecar"
_OF_LEADERS = ("lifecycle", "ports", "startupProbe", "livenessProbe", "readinessProbe")
_CONTAINERS = ("initContainers", "containers")


def worker_template(desired: DesiredState, revision: str) -> dict[str, Any]:
    """The template, the user's own merged over ours but for the sidecar's part. Raises BadInput."""
    template = own_template(desired, revision)
    spec = template["spec"]
    spec["initContainers"] = _without_sidecar(spec["initContainers"])
    spec["containers"] = [_worker(each) for each in spec["containers"]]
    mounted = {mount["name"] for kind in _CONTAINERS for each in spec[kind] for mount in each.get("volumeMounts", ())}
    spec["volumes"] = [volume for volume in spec["volumes"] if volume["name"] in mounted]
    return with_revision(merge_template(template, _for_workers(desired.service.spec.template.to_dict())), revision)


def _worker(engine: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in engine.items() if name not in _OF_LEADERS}
    of_leaders = ("--probe-port=", "--sidecar=")
    return {**kept, "command": [part for part in engine["command"] if not part.startswith(of_leaders)]}


def _for_workers(theirs: dict[str, Any]) -> dict[str, Any]:
    spec = theirs.get("spec")
    if not isinstance(spec, Mapping):
        return theirs
    lists = {kind: _without_sidecar(spec[kind]) for kind in _CONTAINERS if isinstance(spec.get(kind), list)}
    return {**theirs, "spec": {**spec, **lists}}


def _without_sidecar(containers: list[Any]) -> list[Any]:
    return [each for each in containers if not isinstance(each, Mapping) or each.get("name") != SIDECAR]
