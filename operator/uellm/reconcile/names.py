"""Names, labels and owner references of everything that belongs to an LLMService: functions of the service alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from uellm.api import LLMService
from uellm.api.names import API_VERSION, LLMSERVICE_KIND, REVISION_LABEL, SERVICE_LABEL, WORKER_INDEX_LABEL

MANAGER = "uellm"
"""The field manager of every server-side apply."""

OWNER_ANNOTATION = "uellm.io/owner"
"""Uid of the LLMService: identifies a child whose owner reference was removed."""
APPLIED_ANNOTATION = "uellm.io/applied"
"""Digest of the manifest that was applied last."""
SPEC_ANNOTATION = "uellm.io/spec"
"""On a revision: generation and digest of the spec that it was made for. Before revisions, on the Deployment."""
INPUTS_ANNOTATION = "uellm.io/inputs"
"""On a revision: digest of the plan that it was made for."""
IMAGES_ANNOTATION = "uellm.io/images"
"""On a Deployment of a release without revisions: the images that it was built with."""
TEMPLATE_ANNOTATION = "uellm.io/template"
"""On a Deployment of a release without revisions: its pod template, and for which shape of plan it was built."""

ROLLOUT_ANNOTATION = "uellm.io/rollout"
"""On the Deployment: how its replicas are replaced, and why; only where the spec leaves that to the operator."""

STAND_IN_ANNOTATION = "uellm.io/stand-in"
"""On the Deployment: the nodes being emptied for which there is a stand-in, or for which it was given up."""

COST_ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"
"""On pods: where a ReplicaSet gets fewer, those of the lowest cost end first."""

OWN_COST_ANNOTATION = "uellm.io/deletion-cost"
"""On pods: the same value, where the operator has set it."""


class Key(NamedTuple):
    """Identity of an LLMService."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def key_of(service: Mapping[str, Any]) -> Key:
    """The key of an LLMService document."""
    return Key(service["metadata"]["namespace"], service["metadata"]["name"])


def deployment_name(service_name: str) -> str:
    """Name of the engine's Deployment, and of its LeaderWorkerSet where a replica spans nodes."""
    return f"{service_name}-engine"


def config_name(service_name: str) -> str:
    """Name of the ConfigMap that the sidecars reload."""
    return f"{service_name}-config"


def revision_name(service_name: str, revision: str) -> str:
    """Name of the ConfigMap of a revision. A revision's name has no hyphen, so no two services share one."""
    return f"{service_name}-{revision}"


def devices_name(service_name: str) -> str:
    """Name of the ConfigMap of devices.json."""
    return f"{service_name}-devices"


def model_name(service_name: str) -> str:
    """Name of the ConfigMap with the facts of the model."""
    return f"{service_name}-model"


def weights_name(service_name: str) -> str:
    """Name of the claim that the operator makes for the model's files, and of the ConfigMap that says what is on it."""
    return f"{service_name}-weights"


def download_prefix(service_name: str) -> str:
    """With what the names of download pods begin."""
    return f"{service_name}-weights-"


def picker_name(service: LLMService) -> str:
    """Name of the Service of the endpoint picker."""
    return service.spec.inference_pool.endpoint_picker.name or f"{service.name}-epp"


def inspection_prefix(service_name: str) -> str:
    """With what the names of inspection pods begin."""
    return f"{service_name}-model-"


def endpoint(key: Key) -> str:
    """Base address of the OpenAI-compatible API inside the cluster."""
    return f"http://{key.name}.{key.namespace}.svc/v1"


def selector(service_name: str) -> dict[str, str]:
    """Labels that select the pods. As few as possible, because a Deployment's selector can never be changed."""
    return {SERVICE_LABEL: service_name}


def serving_selector(service_name: str, nodes: int) -> dict[str, str]:
    """Labels that select the pods that take requests. `nodes`: that a replica spans; then they are the leaders."""
    return selector(service_name) | ({WORKER_INDEX_LABEL: "0"} if nodes > 1 else {})


def labels(service_name: str) -> dict[str, str]:
    """Labels of every child."""
    return {
        "app.kubernetes.io/name": "uellm-engine",
        "app.kubernetes.io/instance": service_name,
        "app.kubernetes.io/managed-by": "uellm",
        **selector(service_name),
    }


def child_metadata(service: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Metadata of a child: named, labelled, and owned, so that Kubernetes deletes it with its owner."""
    metadata = service["metadata"]
    return {
        "name": name,
        "namespace": metadata["namespace"],
        "labels": labels(metadata["name"]),
        "annotations": {OWNER_ANNOTATION: metadata["uid"]},
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": LLMSERVICE_KIND,
                "name": metadata["name"],
                "uid": metadata["uid"],
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def controller_of(obj: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The owner reference that controls an object."""
    references = obj["metadata"].get("ownerReferences") or ()
    return next((reference for reference in references if reference.get("controller")), None)


def belongs_to(obj: Mapping[str, Any], service: Mapping[str, Any]) -> bool:
    """True where the object is a child of this very service.

    A child whose owner reference was removed is still identified by its annotation, so that it can be repaired.
    """
    controller = controller_of(obj)
    if controller is not None:
        return bool(controller.get("uid") == service["metadata"]["uid"])
    return bool((obj["metadata"].get("annotations") or {}).get(OWNER_ANNOTATION) == service["metadata"]["uid"])


def belonged_to_namesake(obj: Mapping[str, Any], service: Mapping[str, Any]) -> bool:
    """True for a child of a deleted service of the same name, which the garbage collector is about to remove."""
    controller = controller_of(obj)
    return (
        controller is not None
        and controller.get("kind") == LLMSERVICE_KIND
        and controller.get("name") == service["metadata"]["name"]
        and controller.get("uid") != service["metadata"]["uid"]
    )


def possible_owners(obj: Mapping[str, Any]) -> set[Key]:
    """Every service that an object may belong to, by its label, its owner reference or its name."""
    metadata = obj["metadata"]
    namespace, name = metadata.get("namespace", ""), metadata["name"]
    names = {name, name.removesuffix("-engine"), name.rpartition("-")[0] or name}
    if label := (metadata.get("labels") or {}).get(SERVICE_LABEL):
        names.add(label)
    controller = controller_of(obj)
    if controller is not None and controller.get("kind") == LLMSERVICE_KIND:
        names.add(controller["name"])
    return {Key(namespace, each) for each in names}


def revision_label(obj: Mapping[str, Any]) -> str:
    """The revision of a ConfigMap, pod or pod template by its label; empty for none."""
    return str(((obj.get("metadata") or {}).get("labels") or {}).get(REVISION_LABEL) or "")


def uid_of(obj: Mapping[str, Any]) -> str:
    """An object's uid."""
    uid: str = obj["metadata"]["uid"]
    return uid
