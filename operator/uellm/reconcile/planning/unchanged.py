"""What a service's plan depends on, in a form that is cheap to compare.

A pass in which none of it has changed plans nothing. It is built without a walk over nodes or other services.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from uellm.api.names import EFFICIENCY_ANNOTATION
from uellm.kube.kinds import DEPLOYMENT
from uellm.reconcile.observe import Observed


class Inputs(NamedTuple):
    """Equal inputs give the same plan, or one that is not worth a search."""

    spec: tuple[Any, ...]
    """Which spec, and which calibration."""
    plan_in_force: Any
    children: tuple[Any, ...]
    """Which children exist and what somebody may have done to them."""
    placed: bool
    stranded: bool
    hardware: int
    """Version of the nodes."""
    room: tuple[int, int] | None
    """Versions of what is free and of what is promised; None for a service that has what it needs."""


def inputs_of(
    observed: Observed, *, placed: bool, stranded: bool, hardware: int, room: tuple[int, int] | None
) -> Inputs:
    """The inputs of a pass."""
    metadata = observed.document["metadata"]
    calibration = (metadata.get("annotations") or {}).get(EFFICIENCY_ANNOTATION)
    return Inputs(
        (metadata.get("uid"), metadata.get("generation"), observed.spec_digest, calibration),
        observed.status.get("plan"),
        tuple(_state(observed)),
        placed,
        stranded,
        hardware,
        room,
    )


def _state(observed: Observed) -> list[Any]:
    found = []
    for kind, child in sorted(observed.children.items()):
        metadata = child["metadata"]
        # A Deployment's status changes all the time and says nothing about what was asked for.
        version = metadata.get("generation") if kind == DEPLOYMENT else metadata.get("resourceVersion")
        found.append((kind.kind, metadata.get("uid"), version, metadata.get("annotations")))
    return found
