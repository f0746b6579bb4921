"""How pods can be given GPUs in a cluster: the part of the planner's request that the operator and `uellm plan` share.

Pure. Claims need a DRA driver that publishes the GPUs of some node.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from uellm.api import LLMService
from uellm.hardware import AUTO, DEVICE_PLUGIN, DRA
from uellm.planner.nodes.pools import drivers_known
from uellm.planner.request import NodeOffer, PlanRequest
from uellm.reconcile.dra.support import DraSupport
from uellm.reconcile.planning.eligible_nodes import summarised

_UNPUBLISHED = "no DRA driver publishes its GPUs"
_CLAIMS_ONLY = "GPUs there can only be claimed: set spec.placement.allocation to DRA or Auto"


def may_claim(nodes: Iterable[NodeOffer], dra: DraSupport) -> bool:
    """Whether there is a node whose GPUs pods can claim. `nodes`: those that the service's pods may go to."""
    return dra.obstacle() is None and drivers_known(offer.node for offer in nodes)


def waits_for_nodes(service: LLMService) -> bool:
    """Whether nodes that would join are any use: what a driver will publish on them is not known."""
    return service.spec.placement.allocation != DRA


def as_allocatable(request: PlanRequest, *, claims: bool) -> PlanRequest:
    """The request with the ways and the nodes by which its pods can be given GPUs. `claims`: pods can claim some."""
    if request.allocation == AUTO and not claims:
        request = dataclasses.replace(request, allocation=DEVICE_PLUGIN)
    if request.allocation == DEVICE_PLUGIN:
        return _without_claims_only(request)
    return _unpublished(request) if request.allocation == DRA and not claims else request


def _unpublished(request: PlanRequest) -> PlanRequest:
    """The request of a service whose pods claim GPUs that no node has for them."""
    left = summarised((offer.node.name, _UNPUBLISHED) for offer in request.nodes if not offer.closed)
    shut = (NodeOffer(offer.node, (), closed=_UNPUBLISHED) for offer in request.nodes)
    return dataclasses.replace(request, nodes=tuple(shut), left_out=(*request.left_out, *left))


def _without_claims_only(request: PlanRequest) -> PlanRequest:
    """The request of a service whose pods claim nothing, without the nodes that have nothing else to offer."""
    shut = [offer for offer in request.nodes if offer.node.devices and all(d.claims_only for d in offer.node.devices)]
    if not shut:
        return request
    left = summarised((offer.node.name, _CLAIMS_ONLY) for offer in shut)
    others = tuple(offer for offer in request.nodes if offer not in shut)
    return dataclasses.replace(request, nodes=others, left_out=(*request.left_out, *left))
