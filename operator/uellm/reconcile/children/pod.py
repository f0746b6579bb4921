"""The engine's pod: launcher (init), sidecar (native sidecar), engine. It meets Pod Security `restricted`."""

from __future__ import annotations

import math
from typing import Any

from uellm.api.names import PLAN_ANNOTATION, REVISION_LABEL, SCHEDULER_NAME
from uellm.hardware import GPU_RESOURCE
from uellm.pod_interface import (
    BIN_DIRECTORY,
    COMPILED_DIRECTORY,
    CONFIG_DIRECTORY,
    DEVICES_DIRECTORY,
    DRAIN_PATH,
    ENGINE_FILE,
    ENGINE_PORT,
    KEYS_DIRECTORY,
    LAUNCHER_FILE,
    METRICS_PORT,
    PLACEMENT_FILE,
    PLACEMENT_VARIABLE,
    PLAN_FILE,
    POD_IP_VARIABLE,
    PROBE_PORT,
    REVISION_DIRECTORY,
    RUN_DIRECTORY,
    SIDECAR_FILE,
    SIDECAR_PORT,
    STATE_DIRECTORY,
    STATE_VARIABLE,
)
from uellm.reconcile.adapter_claims import adapter_claims
from uellm.reconcile.children import resources
from uellm.reconcile.children.claim_template import CLAIM_NAME
from uellm.reconcile.children.desired_state import DesiredState
from uellm.reconcile.children.disruption import MARKS
from uellm.reconcile.children.grace import SHORTEST_S, grace_period
from uellm.reconcile.children.merge import merge_template
from uellm.reconcile.children.node_affinity import node_affinity
from uellm.reconcile.model_claim import MODEL_MOUNT, cache_claim, claim_name, image_of, image_volume, mounted_claim
from uellm.reconcile.names import config_name, devices_name, labels, revision_name

HTTP_PORT_NAME = "http"
ENGINE_ADDRESS = f"127.0.0.1:{ENGINE_PORT}"
USER = 65532
HOME = "/var/cache/uellm"
STARTUP_PERIOD_S = 5
SHARED_MEMORY = "2Gi"
"""For what NCCL and vLLM's workers of one pod exchange."""
GROUP_SHARED_MEMORY = "15Gi"
"""Of a replica that spans nodes: vLLM's own deployments have it."""
LONGEST_GATHERING_S = 600
"""For which the pods of a group wait for each other: a node may have to pull the engine's image."""

_CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


def pod_template(desired: DesiredState, revision: str) -> dict[str, Any]:
    """The pod template of a revision, the user's own merged over ours. Raises BadInput where that is impossible.

    Of a replica that spans nodes, it is that of the leader.
    """
    merged = merge_template(own_template(desired, revision), desired.service.spec.template.to_dict())
    return with_revision(merged, revision)


def with_revision(template: dict[str, Any], revision: str) -> dict[str, Any]:
    """A template that says which revision it is of."""
    template["metadata"].setdefault("labels", {})[REVISION_LABEL] = revision
    return template


def own_template(desired: DesiredState, revision: str) -> dict[str, Any]:
    """The pod template without what the user adds to it."""
    return {
        "metadata": {
            "labels": labels(desired.service.name),
            "annotations": {PLAN_ANNOTATION: desired.plan.annotation, **MARKS},
        },
        "spec": {
            **_scheduling(desired, revision),
            "automountServiceAccountToken": False,
            # Links of a Service named `vllm` would set VLLM_PORT to an address, which vLLM cannot parse.
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": grace_period(desired.service, desired.plan).whole_s,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "tolerations": _tolerations(desired.plan.resource_name),
            "initContainers": [*_copier(desired), _launcher(desired), _sidecar(desired)],
            "containers": [_engine(desired)],
            "volumes": _volumes(desired, revision),
        },
    }


def _scheduling(desired: DesiredState, revision: str) -> dict[str, Any]:
    """Who schedules the pod, and by what: its claim, or the labels of nodes."""
    name = desired.service.spec.placement.scheduler_name
    if desired.plan.claim is None:
        affinity = node_affinity(desired.plan.node_needs, extender=_asks_extender(desired))
        return {"schedulerName": name, "affinity": {"nodeAffinity": affinity}}
    template = revision_name(desired.service.name, revision)
    # Two schedulers that allocate claims may give one GPU to both, so this is the one that others use.
    own = {} if _asks_extender(desired) else {"schedulerName": name}
    return {**own, "resourceClaims": [{"name": CLAIM_NAME, "resourceClaimTemplateName": template}]}


def _asks_extender(desired: DesiredState) -> bool:
    """True for our own scheduler; any other may not ask the extender."""
    return desired.service.spec.placement.scheduler_name == SCHEDULER_NAME


def _tolerations(resource_name: str) -> list[dict[str, Any]]:
    # A node with MIG slices (`nvidia.com/mig-1g.10gb`) has the same taint as any other GPU node.
    keys = dict.fromkeys((GPU_RESOURCE, resource_name))
    return [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in keys]


def _copier(desired: DesiredState) -> list[dict[str, Any]]:
    if desired.copier is None:
        return []
    return [{**desired.copier.container, "securityContext": _CONTAINER_SECURITY}]


def _launcher(desired: DesiredState) -> dict[str, Any]:
    return {
        "name": "launcher",
        "image": desired.images.launcher,
        "resources": resources.LAUNCHER,
        "securityContext": _CONTAINER_SECURITY,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": "uellm-bin", "mountPath": BIN_DIRECTORY}],
    }


def _sidecar(desired: DesiredState) -> dict[str, Any]:
    return {
        "name": "sidecar",
        "image": desired.images.sidecar,
        "restartPolicy": "Always",
        "args": [
            "sidecar",
            f"--listen=:{SIDECAR_PORT}",
            f"--engine=http://{ENGINE_ADDRESS}",
            f"--config={CONFIG_DIRECTORY}/{SIDECAR_FILE}",
            f"--engine-config={REVISION_DIRECTORY}/{ENGINE_FILE}",
            f"--metrics-listen=:{METRICS_PORT}",
            f"--drain-seconds={grace_period(desired.service, desired.plan).drain_s}",
            *([f"--engine-parent=http://127.0.0.1:{PROBE_PORT}"] if desired.plan.loads_adapters else []),
        ],
        "env": [
            {"name": PLACEMENT_VARIABLE, "value": PLACEMENT_FILE},
            {"name": STATE_VARIABLE, "value": STATE_DIRECTORY},
        ],
        "ports": [
            {"name": HTTP_PORT_NAME, "containerPort": SIDECAR_PORT, "protocol": "TCP"},
            {"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"},
        ],
        # The engine starts after the sidecar and needs it.
        "startupProbe": {"httpGet": _get("/livez"), "periodSeconds": 1, "failureThreshold": 60},
        "livenessProbe": {"httpGet": _get("/livez"), "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3},
        "readinessProbe": {"httpGet": _get("/readyz"), "periodSeconds": 2, "timeoutSeconds": 2, "failureThreshold": 1},
        "resources": resources.SIDECAR,
        "securityContext": _CONTAINER_SECURITY,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _sidecar_mounts(desired),
    }


def _sidecar_mounts(desired: DesiredState) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [
        {"name": "config", "mountPath": CONFIG_DIRECTORY, "readOnly": True},
        {"name": "revision", "mountPath": REVISION_DIRECTORY, "readOnly": True},
        {"name": "run-uellm", "mountPath": RUN_DIRECTORY, "readOnly": True},
        {"name": "state", "mountPath": STATE_DIRECTORY},
    ]
    if desired.service.spec.auth is not None:
        mounts.append({"name": "api-keys", "mountPath": KEYS_DIRECTORY, "readOnly": True})
    return mounts


def _engine(desired: DesiredState) -> dict[str, Any]:
    grace = grace_period(desired.service, desired.plan)
    drain = f"http://127.0.0.1:{METRICS_PORT}{DRAIN_PATH}"
    return {
        "name": "engine",
        "image": desired.images.engine,
        "command": [
            "python3",
            LAUNCHER_FILE,
            f"--plan={REVISION_DIRECTORY}/{PLAN_FILE}",
            f"--placement={PLACEMENT_FILE}",
            f"--listen={ENGINE_ADDRESS}",
            f"--probe-port={PROBE_PORT}",
            f"--sidecar=127.0.0.1:{METRICS_PORT}",
            *([f"--group-timeout={_gathering_s(desired)}"] if desired.plan.nodes > 1 else []),
        ],
        "env": _environment(desired),
        "ports": [{"name": "probes", "containerPort": PROBE_PORT, "protocol": "TCP"}],
        **_engine_probes(desired.service.spec.engine.startup_timeout_s, min(grace.whole_s, SHORTEST_S)),
        "lifecycle": {
            "preStop": {
                "exec": {
                    # The sidecar answers first.
                    "command": ["python3", LAUNCHER_FILE, "--drain", drain, f"--drain-timeout={grace.drain_s + 10}"]
                }
            }
        },
        "resources": resources.engine_resources(desired),
        "securityContext": _CONTAINER_SECURITY,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _engine_mounts(desired),
    }


def _gathering_s(desired: DesiredState) -> int:
    """The start of the engine itself needs the rest of its time."""
    return min(LONGEST_GATHERING_S, math.ceil(desired.service.spec.engine.startup_timeout_s / 2))


def _engine_probes(startup_timeout_s: float, restart_grace_s: int) -> dict[str, Any]:
    """The engine listens on loopback, out of the kubelet's reach: its parent answers for it.

    `restart_grace_s`: an engine that fails a probe answers no request, so a restart need not wait for the longest.
    """
    port = {"port": PROBE_PORT}
    return {
        "startupProbe": {
            "httpGet": {"path": "/startup", **port},
            "periodSeconds": STARTUP_PERIOD_S,
            "timeoutSeconds": 5,
            "failureThreshold": math.ceil(startup_timeout_s / STARTUP_PERIOD_S),
            "terminationGracePeriodSeconds": max(1, restart_grace_s),
        },
        "livenessProbe": {
            "httpGet": {"path": "/live", **port},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
            "terminationGracePeriodSeconds": max(1, restart_grace_s),
        },
        "readinessProbe": {
            "httpGet": {"path": "/ready", **port},
            "periodSeconds": 2,
            "timeoutSeconds": 5,
            "failureThreshold": 2,
        },
    }


def _get(path: str) -> dict[str, Any]:
    return {"path": path, "port": METRICS_PORT}


def _environment(desired: DesiredState) -> list[dict[str, Any]]:
    """Our variables, then the user's; where both set one, the user's wins."""
    from_pod = {"POD_NAME": "metadata.name", "POD_UID": "metadata.uid", "NODE_NAME": "spec.nodeName"}
    from_pod |= {POD_IP_VARIABLE: "status.podIP"} if desired.plan.nodes > 1 else {}
    entries = [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in from_pod.items()]
    entries += [
        {"name": name, "value": value}
        for name, value in {
            # vLLM and its libraries write to all of these, and our uid has no home and no name.
            "HOME": HOME,
            "USER": "uellm",
            "LOGNAME": "uellm",
            "XDG_CACHE_HOME": f"{HOME}/.cache",
            "XDG_CONFIG_HOME": f"{HOME}/.config",
            "HF_HOME": f"{HOME}/huggingface",
            "VLLM_CACHE_ROOT": f"{HOME}/vllm",
            "VLLM_CONFIG_ROOT": f"{HOME}/.config/vllm",
            "TORCHINDUCTOR_CACHE_DIR": f"{HOME}/inductor",
            "TRITON_CACHE_DIR": f"{HOME}/triton",
            # vLLM's own limit for loading a model: the same as that of the startup probe.
            "VLLM_ENGINE_READY_TIMEOUT_S": str(math.ceil(desired.service.spec.engine.startup_timeout_s)),
        }.items()
    ]
    model = desired.service.spec.model
    token = model.token_secret_ref
    # An engine that starts from a claim asks no hub. On a node it has a copy of the model alone, not of its adapters.
    if token is not None and cache_claim(desired.service) is None:
        secret = {"secretKeyRef": {"name": token.name, "key": token.key}}
        entries.append({"name": "HF_TOKEN", "valueFrom": secret})
    theirs = [{"name": each.name, "value": each.value} for each in desired.service.spec.engine.env]
    names = {entry["name"] for entry in theirs}
    return [*(entry for entry in entries if entry["name"] not in names), *theirs]


def _engine_mounts(desired: DesiredState) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [
        {"name": "uellm-bin", "mountPath": BIN_DIRECTORY, "readOnly": True},
        {"name": "revision", "mountPath": REVISION_DIRECTORY, "readOnly": True},
        {"name": "devices", "mountPath": DEVICES_DIRECTORY, "readOnly": True},
        {"name": "run-uellm", "mountPath": RUN_DIRECTORY},
        {"name": "cache", "mountPath": HOME},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    if mounted_claim(desired.service) or image_of(desired.service) or desired.copier is not None:
        mounts.append({"name": "model", "mountPath": MODEL_MOUNT, "readOnly": True})
    compiled = desired.compiled if desired.copier is None else desired.copier.compiled
    if compiled and desired.service.spec.model.cache is not None:
        mounts.append({"name": "model", "mountPath": COMPILED_DIRECTORY, "subPath": compiled})
    for index, place in enumerate(adapter_claims(desired.service).values()):
        mounts.append({"name": f"adapters-{index}", "mountPath": place, "readOnly": True})
    return mounts


def _volumes(desired: DesiredState, revision: str) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [
        {"name": name, "emptyDir": {}} for name in ("uellm-bin", "run-uellm", "state", "cache", "tmp")
    ]
    shared = GROUP_SHARED_MEMORY if desired.plan.nodes > 1 else SHARED_MEMORY
    volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shared}})
    name, files = desired.service.name, (PLAN_FILE, ENGINE_FILE)
    volumes.append({"name": "config", "configMap": {"name": config_name(name)}})
    items = [{"key": file, "path": file} for file in files]
    # It is advice: a pod starts without it too.
    volumes.append({"name": "devices", "configMap": {"name": devices_name(name), "optional": True}})
    volumes.append({"name": "revision", "configMap": {"name": revision_name(name, revision), "items": items}})
    if auth := desired.service.spec.auth:
        volumes.append({"name": "api-keys", "secret": {"secretName": auth.api_keys_secret_ref.name}})
    if claim := claim_name(desired.service):
        volumes.append({"name": "model", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}})
    elif claim := cache_claim(desired.service):
        # Its mount is read-only. The volume itself is not: a node may attach it to a download pod at the same time.
        volumes.append({"name": "model", "persistentVolumeClaim": {"claimName": claim}})
    elif image := image_of(desired.service):
        volumes.append(image_volume("model", image))
    elif desired.copier is not None:
        volumes.append({"name": "model", "hostPath": dict(desired.copier.host_path)})
        volumes += map(dict, desired.copier.volumes)
    for index, claim in enumerate(adapter_claims(desired.service)):
        source = {"claimName": claim, "readOnly": True}
        volumes.append({"name": f"adapters-{index}", "persistentVolumeClaim": source})
    return volumes
