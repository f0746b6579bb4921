"""Whether Gateways with an endpoint picker can reach a service: the condition Routed. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from uellm.api import LLMService
from uellm.kube.kinds import HTTPROUTE, INFERENCEPOOL, Kind
from uellm.reconcile.conditions import Condition
from uellm.reconcile.names import picker_name
from uellm.reconcile.obstacle import Obstacle
from uellm.reconcile.optional_kinds import Availability

TYPE = "Routed"
_INSTALL: Mapping[Kind, str] = {
    INFERENCEPOOL: "the CRDs of the Gateway API inference extension",
    HTTPROUTE: "the CRDs of the Gateway API",
}
_LEFT = "the Service serves all the same"


def routed(service: LLMService, children: Mapping[Kind, Mapping[str, Any]]) -> Condition:
    """The condition where all objects are as they should be. What Gateways say of them decides."""
    for kind in (INFERENCEPOOL, HTTPROUTE):
        for gateway, told in _refusals(children.get(kind) or {}):
            message = f"Gateway {gateway} does not take {kind.kind} {service.name}: {told}; {_LEFT}"
            return Condition(TYPE, "False", "NotAccepted", message)
    pool = service.spec.inference_pool
    picker = f"{picker_name(service)}:{pool.endpoint_picker.port}"
    message = f"InferencePool {service.name} names the endpoint picker {picker}"
    if pool.gateways:
        gateways = ", ".join(f"{each.namespace or service.namespace}/{each.name}" for each in pool.gateways)
        message += f"; HTTPRoute {service.name} attaches it to {gateways}"
    return Condition(TYPE, "True", "PoolMade", message)


def writing() -> Condition:
    """The condition while objects are being written."""
    return Condition(TYPE, "Unknown", "Writing", "the InferencePool or its HTTPRoute is being brought up to date")


def refused(obstacle: Obstacle) -> Condition:
    """The condition where an object cannot be written."""
    return Condition(TYPE, "False", obstacle.reason, f"{obstacle.message}; {_LEFT}")


def unavailable(kind: Kind, availability: Availability) -> Obstacle:
    """Why objects of this kind cannot be made."""
    if availability is Availability.FORBIDDEN:
        return Obstacle(
            "Forbidden",
            f"the operator may not read {kind.plural} of {kind.api_version}: give its ClusterRole the rights that "
            "UELLM's chart has",
        )
    return Obstacle(
        "NotInstalled",
        f"the cluster has no {kind.kind} ({kind.api_version}): install {_INSTALL[kind]}, and it is made within "
        "seconds; or set spec.routing to Service",
    )


def _refusals(child: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each Gateway that does not take the object, with its reason, as far as it has seen this generation."""
    generation = child.get("metadata", {}).get("generation")
    for parent in (child.get("status") or {}).get("parents") or ():
        reference = parent.get("parentRef") or {}
        if reference.get("kind", "Gateway") != "Gateway":
            continue  # implementations may report for other objects, such as a default that stands for no parent
        for condition in parent.get("conditions") or ():
            current = condition.get("observedGeneration") in (None, generation)
            if current and condition.get("status") == "False" and condition.get("type") in ("Accepted", "ResolvedRefs"):
                yield str(reference.get("name")), f"{condition.get('reason')} ({condition.get('message')})"
