"""The documents of a plan, as the programs that get them read them."""

from __future__ import annotations

import json

from uellm.planner import plan
from uellm.planner.handover import late_binding
from uellm.planner.handover.annotation import PlanAnnotation
from uellm.planner.handover.device_facts import (
    DeviceFacts,
    facts_of,
    nodes_for_facts,
)
from uellm.planner.handover.plan_document import PlanDocument
from uellm.planner.handover.publish import plan_annotation, plan_document
from uellm.planner.request import EngineRequest

ENGINE = EngineRequest("meta-llama/Llama-3.1-8B", "main", "llama", ("--enable-prefix-caching",))


def document(request) -> dict:
    """The JSON of plan.json."""
    return json.loads(plan_document(plan(request), request).to_json())


def received(request) -> PlanDocument:
    """plan.json as the launcher reads it."""
    return PlanDocument.from_json(plan_document(plan(request), request).to_json())


def advice(request) -> DeviceFacts:
    """devices.json as the launcher reads it."""
    made = plan(request)
    known = {offer.node.name: offer.node for offer in request.nodes}
    facts = facts_of(nodes_for_facts(made.nodes, known), made.devices)
    return DeviceFacts.from_json(facts.to_json())


def bound(request, uuids) -> late_binding.Binding:
    """The binding in a pod that has plan.json and devices.json."""
    return late_binding.bind(received(request), uuids, advice=advice(request))


def annotated(request) -> PlanAnnotation:
    """The annotation as the extender reads it."""
    return PlanAnnotation.from_json(plan_annotation(plan(request), request).to_json())


def kv_of(written: dict) -> int:
    args = written["engine"]["args"]
    return int(args[args.index("--kv-cache-memory-bytes") + 1])


SMALL = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 4096,
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
}
