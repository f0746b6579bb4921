"""Today's output for a service: the plan, and every object that the operator would write for it.

`plan.json` and the pod's annotation are inside the objects, as the launcher and the extender read them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from golden.services import Case
from uellm.api import parse_service
from uellm.errors import PlanError
from uellm.hardware import Node
from uellm.planner import plan
from uellm.planner.request import NodeOffer
from uellm.reconcile.children import DesiredState, Images, children, make_revision
from uellm.reconcile.planning.render import render
from uellm.reconcile.planning.request import architecture_of, plan_request

IMAGES = Images("engine:1", "sidecar:1", "launcher:1")


def outputs(case: Case) -> dict[str, Any]:
    """`{"error": ..}`, or plan, unrounded predictions and manifests, in JSON types."""
    service = parse_service(case.service)
    try:
        request = plan_request(service, architecture_of(service), tuple(_offers(case)))
        made = plan(request)
    except PlanError as error:
        return {"error": {"reason": error.reason, "message": str(error)}}
    rendered = render(made, request)
    desired = DesiredState(case.service, service, rendered, IMAGES, service.spec.replicas, "1/digest")
    predicted = made.predicted
    return {
        "plan": made.to_dict(),
        "predicted": [predicted.ttft_ms, predicted.tpot_ms, predicted.requests_per_s],
        "manifests": {_key(child): child for child in children(replace(desired, revision=make_revision(desired)))},
    }


def _key(child: dict[str, Any]) -> str:
    return "Revision" if child.get("immutable") else str(child["kind"])


def _offers(case: Case) -> list[NodeOffer]:
    offers = []
    for profile in case.profiles:
        node = Node.from_profile(profile)
        free = (device.uuid for device in node.devices if device.usable and not device.allocated_to_pod_uid)
        offers.append(NodeOffer(node, tuple(free), case.promised.get(node.name, 0)))
    return offers
