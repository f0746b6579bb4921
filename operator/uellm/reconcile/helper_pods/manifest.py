"""The manifest of a helper pod: our own small image, no GPU, no right to the API. Pure.

It meets Pod Security `restricted`, unless the user's own volumes do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from uellm.api import LLMService
from uellm.api.names import SERVICE_LABEL, SOURCE_LABEL
from uellm.hardware import GPU_RESOURCE
from uellm.pod_interface import METRICS_PORT
from uellm.reconcile.helper_pods.hub_access import Entry, entries
from uellm.reconcile.names import child_metadata

USER = 65532
SERVED_S = 600
GRACE_S = 5
# What decides whether the files of a volume can be read and written.
_ACCESS = ("runAsUser", "runAsGroup", "fsGroup", "fsGroupChangePolicy", "supplementalGroups", "seLinuxOptions")


@dataclass(frozen=True)
class HelperPod:
    """What one kind of helper pod differs in from another."""

    name: str
    """Of its container, and of what it does: `inspect`."""
    label: str
    """The label that holds the service's name."""
    prefix: str
    """With what the pod's name begins."""
    source: str
    """Digest of what is asked: another one calls for another pod."""
    args: tuple[str, ...]
    resources: Mapping[str, Any]
    environment: tuple[Entry, ...] = ()
    volumes: tuple[Entry, ...] = ()
    mounts: tuple[Entry, ...] = ()
    on_volume: bool = False
    """It needs a volume of the engine's: it goes where the engine's pods go, as the user that they are."""
    security: Mapping[str, Any] = field(default_factory=dict)
    """Of the pod, besides the usual; the template's own wins."""
    deadline_s: int | None = None
    """Of the pod from its start, the pull of the image included."""
    prefers_nodes: tuple[str, ...] = ()
    """Where it goes if it can."""


def helper_pod(document: Mapping[str, Any], service: LLMService, helper: HelperPod, image: str) -> dict[str, Any]:
    """The pod, owned by the LLMService `document`, which is `service`, parsed."""
    template = service.spec.template.spec or {}
    metadata = child_metadata(document, "")
    del metadata["name"]
    metadata |= {"generateName": helper.prefix, "labels": _labels(service.name, helper)}
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_S,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": _security(template, helper),
        "tolerations": [_of_gpus(), *entries(template, "tolerations")],
        "containers": [_container(helper, image)],
        "volumes": list(helper.volumes),
    }
    if helper.deadline_s is not None:
        spec["activeDeadlineSeconds"] = helper.deadline_s
    if helper.on_volume and template.get("nodeSelector"):
        spec["nodeSelector"] = template["nodeSelector"]
    if helper.prefers_nodes:
        spec["affinity"] = {"nodeAffinity": _near(helper.prefers_nodes)}
    if secrets := entries(template, "imagePullSecrets"):
        spec["imagePullSecrets"] = secrets
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _labels(service_name: str, helper: HelperPod) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": f"uellm-{helper.label.rpartition('/')[2]}",
        "app.kubernetes.io/instance": service_name,
        "app.kubernetes.io/managed-by": "uellm",
        # There, so that the operator's watch sees the pod; empty, so that no Service and no Deployment selects it.
        SERVICE_LABEL: "",
        helper.label: service_name,
        SOURCE_LABEL: helper.source,
    }


def _of_gpus() -> dict[str, Any]:
    # A volume may be within reach of GPU nodes only, and a cluster may have no other nodes.
    return {"key": GPU_RESOURCE, "operator": "Exists", "effect": "NoSchedule"}


def _near(nodes: tuple[str, ...]) -> dict[str, Any]:
    term = {"key": "kubernetes.io/hostname", "operator": "In", "values": list(nodes)}
    preferred = {"weight": 100, "preference": {"matchExpressions": [term]}}
    return {"preferredDuringSchedulingIgnoredDuringExecution": [preferred]}


def _security(template: Mapping[str, Any], helper: HelperPod) -> dict[str, Any]:
    """A user without rights; on a volume the user and the groups that the engine has there, root excepted."""
    ours = {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
        **helper.security,
    }
    theirs = template.get("securityContext")
    if not helper.on_volume or not isinstance(theirs, Mapping):
        return ours
    return {**ours, **{name: theirs[name] for name in _ACCESS if theirs.get(name)}}


def _container(helper: HelperPod, image: str) -> dict[str, Any]:
    return {
        "name": helper.name,
        "image": image,
        "args": [helper.name, *helper.args, f"--listen=:{METRICS_PORT}", f"--seconds={SERVED_S}"],
        "env": list(helper.environment),
        "ports": [{"name": "model", "containerPort": METRICS_PORT, "protocol": "TCP"}],
        "resources": dict(helper.resources),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": list(helper.mounts),
    }
