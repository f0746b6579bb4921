"""What the gateway reads of LLMServices and EndpointSlices. Pure.

The objects may be of a newer or older version than this program, so a field that is missing or odd counts as not set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from uellm.api.scalars import duration_s
from uellm.errors import BadInput
from uellm.gateway.catalog import Service, ServiceKey, TargetClass
from uellm.gateway.replicas import ReplicaAddress
from uellm.pod_interface import METRICS_PORT

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
"""On an EndpointSlice: the name of its Service, which is that of its LLMService."""
PORT_NAME = "http"


def key_of(document: Mapping[str, Any]) -> ServiceKey:
    """Namespace and name of an object."""
    metadata = document["metadata"]
    return ServiceKey(metadata["namespace"], metadata["name"])


def service_of(document: Mapping[str, Any]) -> Service:
    """An LLMService."""
    metadata, spec = document["metadata"], _map(document, "spec")
    model, autoscaling = _map(spec, "model"), _map(spec, "autoscaling")
    key = key_of(document)
    suspended, deleting = spec.get("suspend") is True, bool(metadata.get("deletionTimestamp"))
    named = [model.get("servedName") or key.name]
    named += [adapter.get("name") for adapter in _list(model, "adapters") if isinstance(adapter, Mapping)]
    startup_s = _map(_map(document, "status"), "autoscaling").get("startupSeconds")
    return Service(
        key,
        tuple(name for name in named if isinstance(name, str) and name),
        uid=metadata.get("uid", ""),
        created_s=_unix_s(metadata.get("creationTimestamp")),
        suspended=suspended,
        deleting=deleting,
        wakes=bool(autoscaling) and not suspended and not deleting,
        replicas=spec.get("replicas", 1) if isinstance(spec.get("replicas", 1), int) else 1,
        startup_s=float(startup_s) if isinstance(startup_s, int | float) else None,
        classes=_classes(_map(spec, "slo")),
        keys_secret=_map(_map(spec, "auth"), "apiKeysSecretRef").get("name"),
    )


def slice_service(document: Mapping[str, Any]) -> ServiceKey | None:
    """The service that an EndpointSlice belongs to. A stub of a deleted one has no labels: None."""
    metadata = document["metadata"]
    name = (metadata.get("labels") or {}).get(SERVICE_NAME_LABEL)
    return ServiceKey(metadata["namespace"], name) if name else None


def ready_endpoints(document: Mapping[str, Any]) -> Iterator[tuple[str, ReplicaAddress]]:
    """The endpoints of a slice that are ready, each with the identity of its pod: a pod may have two addresses."""
    port = next((p.get("port") for p in _list(document, "ports") if p.get("name") == PORT_NAME), None)
    if document.get("addressType") not in ("IPv4", "IPv6") or not isinstance(port, int):
        return
    for endpoint in _list(document, "endpoints"):
        conditions, addresses = _map(endpoint, "conditions"), _list(endpoint, "addresses")
        if conditions.get("ready") is False or conditions.get("terminating") is True or not addresses:
            continue
        yield _map(endpoint, "targetRef").get("uid") or addresses[0], ReplicaAddress(addresses[0], port, METRICS_PORT)


def _classes(slo: Mapping[str, Any]) -> tuple[TargetClass, ...]:
    classes = [
        each for each in _list(slo, "classes") if isinstance(each, Mapping) and isinstance(each.get("name"), str)
    ]
    classes.sort(key=lambda each: each["name"] != slo.get("defaultClass", each["name"]))
    return tuple(_class(each) for each in classes)


def _class(document: Mapping[str, Any]) -> TargetClass:
    targets_s = {f"{name}_s": _seconds(document.get(name)) for name in ("ttft", "tpot", "e2e")}
    return TargetClass(document["name"], **targets_s, rejects_late=document.get("onDeadline") == "Reject")


def _seconds(text: Any) -> float | None:
    try:
        return duration_s(text) if isinstance(text, str) else None
    except BadInput:
        return None


def _unix_s(text: Any) -> int:
    try:
        return int(datetime.fromisoformat(text).timestamp())
    except (TypeError, ValueError):
        return 0


def _map(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = document.get(name)
    return found if isinstance(found, Mapping) else {}


def _list(document: Mapping[str, Any], name: str) -> list[Any]:
    found = document.get(name)
    return found if isinstance(found, list) else []
