"""What a service's plan depends on, in a form that is cheap to compare.

A pass in which none of it has changed plans nothing. It is built without a walk over nodes or other services.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from uellm.api.names import EFFICIENCY_ANNOTATION
from uellm.planner.result import Plan
from uellm.reconcile.kueue import may_displace
from uellm.reconcile.observe import Observed


class Inputs(NamedTuple):
    """Equal inputs give the same plan, or one that is not worth a search."""

    spec: tuple[Any, ...]
    """Which spec, calibration and facts of the model, and whether its pods may displace others."""
    own_plan: bool
    """The status has the chosen plan, or none yet; not somebody else's."""
    stranded: bool
    lost_place: bool
    """A replica had a place when the plan was chosen, and has none now."""
    hardware: int
    """Version of the nodes."""
    room: tuple[int, int] | None
    """Versions of what is free and of what is promised; None for a service that has what it needs."""


def inputs_of(
    observed: Observed, chosen: Plan | None, *, stranded: bool, lost_place: bool, hardware: int, room: tuple[int, int]
) -> Inputs:
    """The inputs of a pass. `chosen`: the plan that was chosen last."""
    metadata = observed.document["metadata"]
    calibration = (metadata.get("annotations") or {}).get(EFFICIENCY_ANNOTATION)
    waits = chosen is None or stranded or bool(chosen.node_classes)
    return Inputs(
        (
            *(metadata.get("uid"), metadata.get("generation"), observed.spec_digest, calibration),
            *(observed.facts, observed.dra.obstacle(), may_displace(observed.document)),
        ),
        chosen is None or observed.incumbent in (None, chosen),
        stranded,
        lost_place,
        hardware,
        room if waits else None,
    )
