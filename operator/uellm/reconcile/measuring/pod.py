"""The manifest of a measuring pod. Pure.

It is root without capabilities, for the node's directory belongs to root. Nothing else of it is more than Pod Security
`restricted` allows but the directory itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from uellm.api.names import API_VERSION, MEASURING_LABEL, SERVICE_LABEL
from uellm.pod_interface import BIN_DIRECTORY
from uellm.reconcile.measuring.needs import MeasuringNeed
from uellm.reconcile.measuring.settings import MeasuringSettings

PROGRAM = "measuring.pyz"
RESULT_DIRECTORY = "/var/lib/uellm/measurements"
DEADLINE_S = 900
"""Of the pod from its start, the pull of the image included; eight GPUs take a minute."""
GRACE_S = 2
"""The program ends at once; the kubelet kills what does not."""
SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"
_LONGEST_NAME = 253
_CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


def measuring_pod(
    profile: Mapping[str, Any], need: MeasuringNeed, image: str, settings: MeasuringSettings
) -> dict[str, Any]:
    """The pod that measures what `need` says on the node of `profile`."""
    node = profile["metadata"]["name"]
    spec: dict[str, Any] = {
        # Not left to a scheduler: what cannot run there is to run nowhere, and no autoscaler is to add a node for it.
        "nodeName": node,
        "priorityClassName": settings.priority_class,
        "restartPolicy": "Never",
        "activeDeadlineSeconds": DEADLINE_S,
        "terminationGracePeriodSeconds": GRACE_S,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "tolerations": [{"operator": "Exists"}],
        "securityContext": {
            "runAsNonRoot": False,
            "runAsUser": 0,
            "runAsGroup": 0,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": [_copier(settings)],
        "containers": [_container(need, image, settings)],
        "volumes": [
            {"name": "bin", "emptyDir": {"sizeLimit": "16Mi"}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
            # NCCL's processes meet there, where the GPUs cannot reach one another.
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
            {"name": "result", "hostPath": {"path": settings.directory, "type": "DirectoryOrCreate"}},
            *settings.volumes,
        ],
    }
    if settings.runtime_class:
        spec["runtimeClassName"] = settings.runtime_class
    if settings.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.pull_secrets]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": _metadata(profile, need, settings), "spec": spec}


def pod_name(node: str) -> str:
    """One name a node: there is never a second pod."""
    name = f"measure-{node}"
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME - 9]}-{hashlib.sha256(node.encode()).hexdigest()[:8]}"


def _metadata(profile: Mapping[str, Any], need: MeasuringNeed, settings: MeasuringSettings) -> dict[str, Any]:
    node = profile["metadata"]["name"]
    return {
        "name": pod_name(node),
        "namespace": settings.namespace,
        "labels": {
            "app.kubernetes.io/name": "uellm-measuring",
            "app.kubernetes.io/managed-by": "uellm",
            # There, so that the operator's watch sees the pod; empty, so that no service has it.
            SERVICE_LABEL: "",
            MEASURING_LABEL: need.mark,
        },
        "annotations": {SAFE_TO_EVICT: "true"},
        # Deleted with the profile, which goes with its node. A pod without a controller would stop `kubectl drain`.
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": "GPUNodeProfile",
                "name": node,
                "uid": profile["metadata"]["uid"],
                "controller": True,
            }
        ],
    }


def _copier(settings: MeasuringSettings) -> dict[str, Any]:
    return {
        "name": "program",
        "image": settings.launcher_image,
        "command": ["cp", f"/{PROGRAM}", f"{BIN_DIRECTORY}/{PROGRAM}"],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
        "securityContext": _CONTAINER_SECURITY,
        "volumeMounts": [{"name": "bin", "mountPath": BIN_DIRECTORY}],
    }


def _container(need: MeasuringNeed, image: str, settings: MeasuringSettings) -> dict[str, Any]:
    requests = {**(settings.resources.get("requests") or {}), need.resource: str(need.gpus)}
    limits = {**(settings.resources.get("limits") or {}), need.resource: str(need.gpus)}
    return {
        "name": "measure",
        "image": image,
        "command": ["python3", f"{BIN_DIRECTORY}/{PROGRAM}"],
        "args": [
            f"--directory={RESULT_DIRECTORY}",
            f"--on={need.on}",
            f"--request={need.request}",
            f"--mark={need.mark}",
        ],
        "env": [
            {"name": "HOME", "value": "/tmp"},
            {"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "compute,utility"},
            *settings.env,
        ],
        "resources": {"requests": requests, "limits": limits},
        "securityContext": _CONTAINER_SECURITY,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "bin", "mountPath": BIN_DIRECTORY, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "result", "mountPath": RESULT_DIRECTORY},
            *settings.volume_mounts,
        ],
    }
