"""The decision on a service's number of replicas, as a condition and a part of the status. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from uellm.reconcile.conditions import Condition
from uellm.reconcile.names import Key

TYPE = "Scaling"
NO_GATEWAY = "NoGateway"
INVALID_SPEC = "InvalidSpec"
_NOT_LOOKED_AT = "spec.replicas is not looked at"


class Scaling(NamedTuple):
    """How many replicas are to run, and why."""

    replicas: int
    reason: str
    message: str
    startup_s: float | None = None
    """The time that a replica took to start; None: not measured yet."""

    @property
    def condition(self) -> Condition:
        """The condition Scaling; False where the number cannot follow the load."""
        failing = {"ScalingLimited": "False", NO_GATEWAY: "False", INVALID_SPEC: "False", "NotReported": "Unknown"}
        holds = failing.get(self.reason, "True")
        return Condition(TYPE, holds, self.reason, f"{self.message}; {_NOT_LOOKED_AT}")

    def to_dict(self) -> dict[str, Any]:
        """`status.autoscaling`."""
        entry: dict[str, Any] = {"replicas": self.replicas}
        if self.startup_s is not None:
            entry["startupSeconds"] = round(self.startup_s)
        return entry


def without_gateway(scaling: Scaling, key: Key) -> Scaling:
    """The same where one replica stays, because nothing would ask for another one. A limit is told before that."""
    if scaling.reason != "AsNeeded":
        return scaling
    message = (
        f"{scaling.message}, and never none: no gateway serves namespace {key.namespace}, so no request could start a "
        "first replica: set gateway.enabled and gateway.namespaces of the chart, or minReplicas to 1"
    )
    return scaling._replace(reason=NO_GATEWAY, message=message)


def bounds_of(spec: Mapping[str, Any]) -> tuple[int, int] | None:
    """`minReplicas` and `maxReplicas`; None where the operator does not choose the number."""
    autoscaling = spec.get("autoscaling")
    if not autoscaling:
        return None
    return int(autoscaling.get("minReplicas", 1)), int(autoscaling["maxReplicas"])


def chosen_before(document: Mapping[str, Any]) -> int | None:
    """The number that the status has; None where there is none."""
    chosen = ((document.get("status") or {}).get("autoscaling") or {}).get("replicas")
    return chosen if isinstance(chosen, int) else None


def wanted_replicas(document: Mapping[str, Any]) -> int:
    """Replicas of an LLMService that should run now, as its spec and status have it."""
    spec = document["spec"]
    if spec.get("suspend"):
        return 0
    bounds = bounds_of(spec)
    if bounds is None:
        return int(spec.get("replicas", 1))
    chosen = chosen_before(document)
    return within(bounds, max(1, bounds[0]) if chosen is None else chosen)


def within(bounds: tuple[int, int], replicas: int) -> int:
    """The number, moved into the bounds."""
    return min(max(replicas, bounds[0]), bounds[1])
