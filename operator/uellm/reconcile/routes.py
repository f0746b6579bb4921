"""The InferencePool and the HTTPRoute of a service, apart from its other children: nothing else waits for them.

What is wrong with them is a condition of its own. The pods, the Service and the plan do not depend on it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uellm.kube import Kind, KubeError
from uellm.kube.kinds import kind_of
from uellm.reconcile.apply import Applier, Manifest
from uellm.reconcile.children.http_route import http_route
from uellm.reconcile.children.inference_pool import inference_pool
from uellm.reconcile.conditions import Condition
from uellm.reconcile.drift import signed
from uellm.reconcile.observe import Observed
from uellm.reconcile.obstacle import Obstacle
from uellm.reconcile.optional_kinds import ROUTING_KINDS, Availability
from uellm.reconcile.status.routed import refused, routed, unavailable, writing

logger = logging.getLogger(__name__)

RECHECK_S = 60.0
"""An object in the way that somebody removes causes no event."""
_NO_KIND = (404, 405)
"""405: its CRD is being deleted."""
VANISHED_S = 5.0
"""After this time, the watch of a kind that was just removed has reported that."""


@dataclass(frozen=True)
class RouteStep:
    """What is to be done, and the condition that says so."""

    condition: Condition | None = None
    """None where the service asks for no InferencePool."""
    write: tuple[Manifest, ...] = ()
    remove: tuple[tuple[Kind, Mapping[str, Any]], ...] = ()
    recheck_s: float | None = None


async def next_route_step(applier: Applier, observed: Observed) -> RouteStep:
    """What is to be done about a service's routes. It writes nothing. Raises KubeError."""
    if observed.service is None or observed.deployment is None:
        return RouteStep()  # as the other children: nothing is made, and nothing is taken away
    wanted = wanted_routes(observed)
    kinds = {kind_of(manifest) for manifest in wanted}
    # The route goes before the pool that it leads to.
    surplus = tuple(
        (kind, child)
        for kind in reversed(ROUTING_KINDS)
        if kind not in kinds and (child := observed.children.get(kind)) is not None
    )
    if not wanted:
        return RouteStep(remove=surplus)
    write: list[Manifest] = []
    for manifest in wanted:
        obstacle = await _obstacle(applier, observed, manifest)
        if obstacle is not None:
            # A route to a pool that is not the service's own would lead elsewhere.
            return RouteStep(refused(obstacle), tuple(write), surplus, RECHECK_S)
        write += applier.differing(observed, [manifest])
    return RouteStep(writing() if write else routed(observed.service, observed.children), tuple(write), surplus)


async def take_route_step(applier: Applier, observed: Observed, step: RouteStep) -> float | None:
    """Do it. Returns when to look again. Raises KubeError, and WriteRefused."""
    for kind, child in step.remove:
        await applier.delete(kind, child)
        logger.info("%s deleted %s %s", observed.key, kind.kind, child["metadata"]["name"])
    try:
        await applier.write_children(observed, step.write)
    except KubeError as error:
        if error.status not in _NO_KIND:
            raise
        return VANISHED_S
    return step.recheck_s


def wanted_routes(observed: Observed) -> tuple[dict[str, Any], ...]:
    """The InferencePool and HTTPRoute that the spec asks for."""
    service = observed.service
    if service is None or service.spec.routing != "InferencePool":
        return ()
    nodes = 1 if observed.revision is None else observed.revision.nodes
    made = [inference_pool(observed.document, service, nodes)]
    if service.spec.inference_pool.gateways:
        made.append(http_route(observed.document, service))
    return tuple(signed(each) for each in made)


async def _obstacle(applier: Applier, observed: Observed, manifest: Manifest) -> Obstacle | None:
    kind = kind_of(manifest)
    availability = observed.available.get(kind, Availability.NOT_INSTALLED)
    if availability is not Availability.SERVED:
        return unavailable(kind, availability)
    try:
        return await applier.refusal(observed, applier.differing(observed, [manifest]))
    except KubeError as error:
        if error.status not in _NO_KIND:
            raise
        return unavailable(kind, Availability.NOT_INSTALLED)
