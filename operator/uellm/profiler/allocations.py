"""Joins the kubelet's device -> pod name with the API server's pods to device -> pod UID. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from uellm.api.names import MEASURING_LABEL
from uellm.profiler.podresources import Held, PodKey

MAX_UID = 64
_ENDED = ("Succeeded", "Failed")


class Allocations(NamedTuple):
    """UID of the pod by UUID of the device. Not `settled`: kubelet and API server disagree, so ask again soon."""

    pod_uids: Mapping[str, str]
    settled: bool
    measuring: frozenset[PodKey] = frozenset()
    """Measuring pods that are there, or that the kubelet still lists."""
    measured: frozenset[str] = frozenset()
    """UUIDs of their devices. These are free: any other pod that wants them gets them."""


def allocations(
    held: Held,
    pods: Iterable[Mapping[str, Any]],
    before: Mapping[str, str],
    measuring: Collection[PodKey] = (),
) -> Allocations:
    """Who holds which device. `pods`: the node's pods from the API server; `before`: the last answer.

    A device never counts as free while it may be taken:
    - a pod that the API server does not list (yet, or any longer) is identified by namespace and name instead of UID;
    - a restarted kubelet knows no pods for a moment, so a pod that it does not list and that is alive according to
      the API server keeps its devices.
    The devices of a measuring pod are an exception: they count as free, because every other pod preempts it.
    `measuring`: those of the last answer, for the kubelet lists a pod for a moment after the API server.
    A pod that has ended holds no devices, although some kubelets still list them. Devices of which it is not known
    whether a pod has them are taken, by the pod's name: they are free to nobody, not even to the pod's own service.
    """
    living: dict[PodKey, str] = {}
    ended: set[PodKey] = set()
    leaving: set[PodKey] = set()
    yielding: set[PodKey] = {key for key in measuring if key in held.pods}
    for pod in pods:
        metadata = pod["metadata"]
        key = PodKey(metadata["namespace"], metadata["name"])
        if (pod.get("status") or {}).get("phase") in _ENDED:
            ended.add(key)
            continue
        living[key] = metadata["uid"]
        yielding.discard(key)
        if yields(pod):
            yielding.add(key)
        if metadata.get("deletionTimestamp"):
            leaving.add(key)

    free = ended | yielding
    pod_uids = {device: living.get(key, _name(key)) for device, key in held.devices.items() if key not in free}
    if (unmatched := next((key for key in held.unmatched if key not in ended), None)) is not None:
        pod_uids |= dict.fromkeys(held.unclear, _name(unmatched))
    silent = [key for key in living if key not in held.pods and key not in leaving]
    unmentioned = {holder for key in silent for holder in (living[key], _name(key))}
    kept = {device: uid for device, uid in before.items() if uid in unmentioned and device not in pod_uids}
    named = all(key in living or key in free for key in held.devices.values())
    measured = frozenset(device for device, key in held.devices.items() if key in yielding)
    return Allocations({**kept, **pod_uids}, named and not kept, frozenset(yielding), measured)


def yields(pod: Mapping[str, Any]) -> bool:
    """Whether a pod measures, and any pod of ordinary priority preempts it."""
    labels = pod["metadata"].get("labels") or {}
    return MEASURING_LABEL in labels and int((pod.get("spec") or {}).get("priority") or 0) < 0


def _name(key: PodKey) -> str:
    """What stands in the place of a UID."""
    return str(key)[:MAX_UID]
