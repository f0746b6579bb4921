"""Joins the kubelet's device -> pod name with the API server's pods to device -> pod UID. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from uellm.profiler.podresources import Held, PodKey

MAX_UID = 64
_ENDED = ("Succeeded", "Failed")


class Allocations(NamedTuple):
    """UID of the pod by UUID of the device. Not `settled`: kubelet and API server disagree, so ask again soon."""

    pod_uids: Mapping[str, str]
    settled: bool


def allocations(held: Held, pods: Iterable[Mapping[str, Any]], before: Mapping[str, str]) -> Allocations:
    """Who holds which device. `pods`: the node's pods from the API server; `before`: the last answer.

    A device never counts as free while it may be taken:
    - a pod that the API server does not list (yet, or any longer) is identified by namespace and name instead of UID;
    - a restarted kubelet knows no pods for a moment, so a pod that it does not list and that is alive according to
      the API server keeps its devices.
    A pod that has ended holds no devices, although some kubelets still list them. Devices of which it is not known
    whether a pod has them are taken, by the pod's name: they are free to nobody, not even to the pod's own service.
    """
    living: dict[PodKey, str] = {}
    ended: set[PodKey] = set()
    leaving: set[PodKey] = set()
    for pod in pods:
        metadata = pod["metadata"]
        key = PodKey(metadata["namespace"], metadata["name"])
        if (pod.get("status") or {}).get("phase") in _ENDED:
            ended.add(key)
            continue
        living[key] = metadata["uid"]
        if metadata.get("deletionTimestamp"):
            leaving.add(key)

    pod_uids = {device: living.get(key, _name(key)) for device, key in held.devices.items() if key not in ended}
    if (unmatched := next((key for key in held.unmatched if key not in ended), None)) is not None:
        pod_uids |= dict.fromkeys(held.unclear, _name(unmatched))
    silent = [key for key in living if key not in held.pods and key not in leaving]
    unmentioned = {holder for key in silent for holder in (living[key], _name(key))}
    kept = {device: uid for device, uid in before.items() if uid in unmentioned and device not in pod_uids}
    named = all(key in living or key in ended for key in held.devices.values())
    return Allocations({**kept, **pod_uids}, settled=named and not kept)


def _name(key: PodKey) -> str:
    """What stands in the place of a UID."""
    return str(key)[:MAX_UID]
