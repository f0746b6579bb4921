"""What the extender reads of a plan: the annotation of its pods."""

from __future__ import annotations

from dataclasses import replace

from helpers.plan_documents import annotated
from uellm.hardware import GPU_RESOURCE
from uellm.planner import plan
from uellm.planner.handover.annotation import refusal_on
from uellm.planner.handover.publish import plan_annotation
from uellm.planner.refusals.sentences import sentence
from uellm.planner.request import Overrides


def test_the_annotation_has_the_contracts_fields(unlike) -> None:
    written = plan_annotation(plan(unlike), unlike).to_dict()
    assert written["version"] == 1
    assert {name: written[name] for name in ("gpus", "tensor", "pipeline", "resourceName", "layers", "service")} == {
        "gpus": 2,
        "tensor": 1,
        "pipeline": 2,
        "resourceName": GPU_RESOURCE,
        "layers": None,
        "service": "default/llama",
    }
    assert "nodes" not in written
    assert isinstance(written["layerBytes"], int)


def test_new_measurements_and_another_scale_change_no_byte_of_the_annotation(unlike) -> None:
    made = plan(unlike)
    slower = [
        replace(device, memory_bytes_per_s=1e11, bf16_flops_per_s=1e13) for device in unlike.nodes[0].node.devices
    ]
    node = replace(unlike.nodes[0].node, devices=tuple(slower))
    later = replace(unlike, nodes=(replace(unlike.nodes[0], node=node),), replicas=5)
    assert plan_annotation(made, later).to_json() == plan_annotation(made, unlike).to_json()


def test_a_node_fits_where_any_choice_of_its_free_devices_does(unlike, build) -> None:
    written = annotated(unlike)
    node = unlike.nodes[0].node
    free = [device.uuid for device in node.devices]
    assert refusal_on(written, node, free) is None
    assert sentence(refusal_on(written, node, free[:1])) == "needs 2 free GPUs and has 1"
    assert sentence(refusal_on(written, node, ())) == "needs 2 free nvidia.com/gpu and has none"
    small = build.node("c", ["L4", build.gpu("c", 1, "T4", memory_bytes=1 << 30)])
    assert "GiB" in sentence(refusal_on(written, small, [device.uuid for device in small.devices]))


def test_a_node_fits_given_layers_only_as_they_are_given(unlike, build) -> None:
    request = replace(unlike, overrides=Overrides(layers=(16, 16)))
    written = annotated(request)
    assert written.task.layers_override == (16, 16)
    uneven = build.node("c", ["H100", build.gpu("c", 1, "T4", memory_bytes=6 << 30)])
    assert "stage" in sentence(refusal_on(written, uneven, [device.uuid for device in uneven.devices]))


def test_the_even_policy_holds_for_the_annotation_too(unlike) -> None:
    request = replace(unlike, policy="Even")
    assert plan_annotation(plan(request), request).to_dict()["layers"] == [16, 16]
