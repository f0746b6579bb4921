"""Copies on the disks of nodes: the container that makes one, and what is said while it does. Pure.

A pod's first container copies the model to a directory of its node, unless it is there, and holds it for as long as the
pod runs: another one makes room at the expense of copies that nobody holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from uellm.api import LLMService
from uellm.documents import UnreadableDocument
from uellm.hub import LookUpRefusal, ModelFacts
from uellm.hub.copy_document import from_document
from uellm.hub.copy_state import COMPILED, Copied, copy_path, described
from uellm.pod_interface import DOWNLOAD_PATH, NODE_COPY_PORT
from uellm.reconcile.children.desired_state import NodeCopier
from uellm.reconcile.conditions import Condition
from uellm.reconcile.download.download_state import DOWNLOADING, DownloadState
from uellm.reconcile.download.pod import RESOURCES
from uellm.reconcile.draft import copied_draft
from uellm.reconcile.helper_pods.hub_access import certificates, hub_environment
from uellm.reconcile.inspection.model_state import TYPE
from uellm.reconcile.model_claim import MODEL_MOUNT, NodeCache
from uellm.reconcile.model_source import model_revision, repository
from uellm.reconcile.pods.engine_readiness import living
from uellm.text import counted, decimal_size

CONTAINER = "fetch"
REFUSAL_S = 60
"""How long the container says why it cannot copy before the kubelet starts it anew."""
_CALLED = "the node's directory for models"
NO_NODE_CACHE = "NoNodeCache"
Pod = Mapping[str, Any]


class ToldByPod(NamedTuple):
    """What a pod said last of its copy."""

    pod_uid: str
    state: DownloadState


def not_offered() -> DownloadState:
    """The cluster keeps no models on its nodes."""
    message = (
        "spec.model.cache.nodeLocal: nodes of this cluster keep no models: its administrator sets modelCache.path of "
        "the chart; or take a claim (claimName, or size and accessModes)"
    )
    return DownloadState(False, Condition(TYPE, "False", NO_NODE_CACHE, message))


def compiled_place(service: LLMService) -> str:
    """Where the service's engines may write what they compile, below the directory of the node."""
    return f"{COMPILED}/{service.namespace}/{service.name}"


def node_copier(service: LLMService, facts: ModelFacts | None, cache: NodeCache) -> NodeCopier:
    """The container, and the volumes that it needs besides the model's."""
    volumes, mounts = certificates(service)
    draft = copied_draft(service, facts)
    args = (
        "fetch",
        f"hf://{repository(service)}@{model_revision(service, facts)}",
        MODEL_MOUNT,
        f"--called={_CALLED}",
        f"--compiled={compiled_place(service).removeprefix(f'{COMPILED}/')}",
        *((f"--draft=hf://{draft[0]}@{draft[1]}",) if draft else ()),
        "--hold",
        f"--listen=:{NODE_COPY_PORT}",
        f"--seconds={REFUSAL_S}",
    )
    container = {
        "name": CONTAINER,
        "image": cache.image,
        "restartPolicy": "Always",
        "args": list(args),
        "env": list(hub_environment(service)),
        "ports": [{"name": "copy", "containerPort": NODE_COPY_PORT, "protocol": "TCP"}],
        # A model takes as long as it takes. What cannot be copied ends the container by itself.
        "startupProbe": {
            "httpGet": {"path": "/readyz", "port": NODE_COPY_PORT},
            "periodSeconds": 1,
            "failureThreshold": 1_000_000,
        },
        "resources": RESOURCES,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": "model", "mountPath": MODEL_MOUNT}, *mounts],
    }
    return NodeCopier(container, {"path": cache.path, "type": "Directory"}, tuple(volumes), compiled_place(service))


def copying(pods: Sequence[Pod]) -> Pod | None:
    """A pod that has not got its copy yet."""
    return next((pod for pod in living(pods) if _is_copying(pod)), None)


def is_answering(pod: Pod) -> bool:
    """Whether its container runs, so that it can be asked."""
    return bool(pod["status"].get("podIP")) and "running" in ((_status(pod) or {}).get("state") or {})


def said(pod: Pod, document: Mapping[str, Any] | None, before: ToldByPod | None) -> ToldByPod:
    """What to say of a pod that copies. `document`: its answer, at DOWNLOAD_PATH; None for none."""
    name, node, uid = pod["metadata"]["name"], pod["spec"].get("nodeName"), pod["metadata"]["uid"]
    what = f"pod {name} copies the model to the disk of node {node}"
    if document is None:
        if before is not None and before.pod_uid == uid:
            return before  # a missed answer, or a container that waits to be started again, is no news
        return ToldByPod(uid, _under_way(what))
    try:
        answer = from_document(document)
    except UnreadableDocument as error:
        answer = LookUpRefusal("InvalidAnswer", f"{DOWNLOAD_PATH}: {error}")
    if isinstance(answer, LookUpRefusal):
        message = f"{what}, which is tried again: {answer.message}"
        return ToldByPod(uid, DownloadState(True, Condition(TYPE, "False", answer.reason, message)))
    if isinstance(answer, Copied):
        return ToldByPod(uid, _under_way(f"{what}: {counted(answer.files, 'file')} of {decimal_size(answer.bytes)}"))
    return ToldByPod(uid, _under_way(f"{what}: {described(answer)}"))


def on_nodes(service: LLMService, facts: ModelFacts | None) -> DownloadState:
    """Nothing is being copied: what there is to say."""
    place = copy_path(repository(service), model_revision(service, facts))
    return DownloadState(True, note=f"nodes that run it keep {place}")


def _under_way(message: str) -> DownloadState:
    return DownloadState(True, Condition(TYPE, "Unknown", DOWNLOADING, message))


def _is_copying(pod: Pod) -> bool:
    status = _status(pod)
    return status is not None and not status.get("started") and bool(pod["spec"].get("nodeName"))


def _status(pod: Pod) -> Mapping[str, Any] | None:
    statuses = pod["status"].get("initContainerStatuses") or ()
    return next((each for each in statuses if each.get("name") == CONTAINER), None)
