"""The kubelet says device -> pod name, the API server says which pods there are: device -> pod UID; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from uellm.profiler.podresources import Held, PodKey

MAX_UID = 64
_ENDED = ("Succeeded", "Failed")


class Allocations(NamedTuple):
    """UID of the pod by UUID of the device. Not `settled`: ask again soon, kubelet and API server disagree."""

    pod_uids: Mapping[str, str]
    settled: bool


def allocations(held: Held, pods: Iterable[Mapping[str, Any]], before: Mapping[str, str]) -> Allocations:
    """Who has what, where `pods` are the node's pods by the API server and `before` is the last answer.

    A device is never called free while it may be taken:
    - a pod that the API server does not name (yet, or any more) is named by namespace and name in place of its UID;
    - a kubelet that was just started again knows no pods for a moment: a pod that it does not mention, and that the
      API server knows as alive, keeps its devices.
    A pod that has ended has no devices, although some kubelets go on listing them.
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

    pod_uids = {device: living.get(key, str(key)[:MAX_UID]) for device, key in held.devices.items() if key not in ended}
    unmentioned = {uid for key, uid in living.items() if key not in held.pods and key not in leaving}
    kept = {device: uid for device, uid in before.items() if uid in unmentioned and device not in pod_uids}
    named = all(key in living or key in ended for key in held.devices.values())
    return Allocations({**kept, **pod_uids}, settled=named and not kept)
