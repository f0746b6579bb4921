"""The manifest of the inspection pod: our own small image, no GPU, no right to the API. Pure.

It meets Pod Security `restricted`, unless the user's own volumes do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uellm.api import LLMService
from uellm.api.names import INSPECTION_LABEL, SERVICE_LABEL, SOURCE_LABEL
from uellm.hardware import GPU_RESOURCE
from uellm.pod_interface import METRICS_PORT
from uellm.reconcile.inspection.question import Question, entries
from uellm.reconcile.names import child_metadata, inspection_prefix

USER = 65532
SERVED_S = 600
DEADLINE_S = 900
"""Of the pod from its start, the pull of the image included."""
GRACE_S = 5
RESOURCES = {
    "requests": {"cpu": "50m", "memory": "64Mi", "ephemeral-storage": "16Mi"},
    # The headers of the largest models have some 100,000 tensors.
    "limits": {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "64Mi"},
}
# What decides whether the files of a volume can be read.
_ACCESS = ("runAsUser", "runAsGroup", "fsGroup", "fsGroupChangePolicy", "supplementalGroups", "seLinuxOptions")


def inspection_pod(document: Mapping[str, Any], service: LLMService, question: Question, image: str) -> dict[str, Any]:
    """The pod that answers a question about the model of `document`, which is `service`, parsed."""
    template = service.spec.template.spec or {}
    metadata = child_metadata(document, "")
    del metadata["name"]
    metadata |= {"generateName": inspection_prefix(service.name), "labels": _labels(service.name, question)}
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": DEADLINE_S,
        "terminationGracePeriodSeconds": GRACE_S,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": _security(template, question),
        "tolerations": [_of_gpus(), *entries(template, "tolerations")],
        "containers": [_container(question, image)],
        "volumes": list(question.volumes),
    }
    if question.on_volume and template.get("nodeSelector"):
        spec["nodeSelector"] = template["nodeSelector"]
    if secrets := entries(template, "imagePullSecrets"):
        spec["imagePullSecrets"] = secrets
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _labels(service_name: str, question: Question) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "uellm-inspection",
        "app.kubernetes.io/instance": service_name,
        "app.kubernetes.io/managed-by": "uellm",
        # There, so that the operator's watch sees the pod; empty, so that no Service and no Deployment selects it.
        SERVICE_LABEL: "",
        INSPECTION_LABEL: service_name,
        SOURCE_LABEL: question.source,
    }


def _of_gpus() -> dict[str, Any]:
    # A volume may be within reach of GPU nodes only, and a cluster may have no other nodes.
    return {"key": GPU_RESOURCE, "operator": "Exists", "effect": "NoSchedule"}


def _security(template: Mapping[str, Any], question: Question) -> dict[str, Any]:
    """A user without rights; on a volume the user and the groups that the engine has there, root excepted."""
    ours = {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    theirs = template.get("securityContext")
    if not question.on_volume or not isinstance(theirs, Mapping):
        return ours
    return {**ours, **{name: theirs[name] for name in _ACCESS if theirs.get(name)}}


def _container(question: Question, image: str) -> dict[str, Any]:
    return {
        "name": "inspect",
        "image": image,
        "args": ["inspect", *question.arguments, f"--listen=:{METRICS_PORT}", f"--seconds={SERVED_S}"],
        "env": list(question.environment),
        "ports": [{"name": "model", "containerPort": METRICS_PORT, "protocol": "TCP"}],
        "resources": RESOURCES,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": list(question.mounts),
    }
