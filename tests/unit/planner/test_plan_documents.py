"""What the launcher reads of a plan: plan.json and devices.json."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.plan_documents import SMALL, advice, bound, document, kv_of
from uellm.documents import UnreadableDocument
from uellm.hardware import Node
from uellm.planner import plan
from uellm.planner.handover.device_facts import (
    MOST_NODES,
    NodeJson,
    facts_of,
    joined,
    nodes_for_facts,
)
from uellm.planner.handover.publish import plan_annotation, plan_document
from uellm.planner.request import EngineRequest, NodeOffer
from uellm.planner.vllm.flags import UTILIZATION


def test_devices_json_joined_from_the_nodes_own_parts_is_the_same_document(unlike) -> None:
    nodes = {offer.node.name: offer.node for offer in unlike.nodes}
    parts = {name: NodeJson.of(node) for name, node in nodes.items()}
    assert joined(parts, ["a-0"]) == facts_of(nodes.values(), ["a-0"]).to_json()
    assert joined({}, []) == facts_of(()).to_json()


def test_plan_json_has_the_contracts_fields(unlike) -> None:
    written = document(unlike)
    assert written["version"] == 1
    assert written["platform"] == "cuda"
    assert written["plan"] == {"gpusPerReplica": 2, "tensor": 1, "pipeline": 2, "layers": list(plan(unlike).layers)}
    instance = written["instance"]
    assert len(instance["layerBytes"]) == len(instance["layerKvBytes"]) == instance["layers"] == 32
    assert written["reservedBytes"]["fraction"] == "0.08"
    assert (written["policy"], written["layersOverride"], written["tensor"]) == ("HELR", None, 1)
    assert [(each["product"], each["memoryBytes"] >> 30) for each in written["classes"]] == [
        ("A10", 22),
        ("L4", 20),
        ("L4", 22),
    ]
    assert written["classes"][0]["measured"] == {"bf16GigaflopsPerSecond": 109_000, "memoryBytesPerSecond": 516 * 10**9}
    assert {written["engine"][name] for name in ("model", "revision", "servedName")} == {
        "meta-llama/Llama-3.1-8B",
        "main",
        "llama",
    }


def test_plan_json_names_no_node_and_no_device_and_stays_the_same_on_other_nodes_of_the_class(unlike) -> None:
    written = plan_document(plan(unlike), unlike).to_json()
    assert "a-gpu" not in written
    node = unlike.nodes[0].node
    renamed = replace(
        node,
        name="z",
        devices=tuple(replace(each, uuid=each.uuid.replace("a-", "z-")) for each in node.devices),
        links=tuple(replace(link, a=link.a.replace("a-", "z-"), b=link.b.replace("a-", "z-")) for link in node.links),
    )
    offer = NodeOffer(renamed, tuple(device.uuid for device in renamed.devices))
    other = replace(unlike, nodes=(offer, unlike.nodes[1]))
    assert plan_document(plan(other), other).to_json() == written


def test_devices_json_holds_the_devices_of_candidate_nodes_alone(unlike) -> None:
    facts = advice(unlike)
    assert sorted(facts.devices) == ["a-gpu-0", "a-gpu-1", "a-gpu-2", "a-gpu-3"]
    assert len(facts.links) == 12
    assert facts.planned == plan(unlike).devices


def test_devices_json_is_bounded(build) -> None:
    nodes = {f"n{index}": build.node(f"n{index}", "L4") for index in range(100)}
    assert len(nodes_for_facts(list(nodes), nodes)) == MOST_NODES


def test_the_engines_arguments_are_the_plans_and_the_users_and_no_sizes_of_the_pipeline(unlike) -> None:
    made = plan(unlike)
    assert document(unlike)["engine"]["args"] == [
        *("--max-model-len", "8192", "--max-num-batched-tokens", str(made.max_num_batched_tokens)),
        *("--max-num-seqs", str(made.max_num_seqs), "--kv-cache-memory-bytes", str(made.kv_cache_bytes)),
        *("--scheduling-policy", "priority"),
        "--enable-prefix-caching",
    ]


def test_what_the_user_sets_is_not_set_again(unlike) -> None:
    request = replace(
        unlike, engine=EngineRequest("m", args=("--max_num_seqs=16",), dtype="float16", quantization="fp8")
    )
    args = document(request)["engine"]["args"]
    assert "--max-num-seqs" not in args
    assert args[-1] == "--max_num_seqs=16"
    assert args[:4] == [
        "--quantization",
        "fp8",
        "--dtype",
        "bfloat16",
    ]  # the config that the architecture was read from


def test_a_method_that_the_engine_has_deprecated_is_allowed_by_its_flag(build) -> None:
    section = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}
    request = build.request(build.node("a", "H100"), config={**build.config, "quantization_config": section})
    assert "--allow-deprecated-quantization" in document(request)["engine"]["args"]
    plain = build.request(build.node("a", "H100"))
    assert "--allow-deprecated-quantization" not in document(plain)["engine"]["args"]


def test_a_float32_checkpoint_is_planned_in_bfloat16_as_vllm_serves_it(build) -> None:
    node = build.node("a", "H100")
    request = build.request(node, config={**build.config, "torch_dtype": "float32"})
    plain = build.request(node, config={**build.config, "torch_dtype": "bfloat16"})
    assert "--dtype" not in document(request)["engine"]["args"]
    assert document(request)["instance"] == document(plain)["instance"]


def test_transient_facts_are_not_written(unlike) -> None:
    busy = [
        replace(device, memory_free_bytes=5, measured_at="now", allocated_to_pod_uid="pod")
        for device in unlike.nodes[0].node.devices
    ]
    node = replace(unlike.nodes[0].node, devices=tuple(busy))
    later = replace(unlike, nodes=(replace(unlike.nodes[0], node=node), unlike.nodes[1]))
    assert document(later) == document(unlike)


def test_simulated_nodes_run_on_a_cpu(build) -> None:
    request = build.request(build.node("a", "tiny tiny", source="Simulated"), config=SMALL, max_model_len=2048)
    assert document(request)["platform"] == "cpu"


def test_the_cpu_engines_kv_cache_is_sized_in_float32_by_default(build) -> None:
    node = build.node("a", "tiny tiny", source="Simulated")
    request = build.request(node, config=SMALL, max_model_len=2048)
    written, explicit = document(request), document(replace(request, engine=EngineRequest(dtype="bfloat16")))
    assert kv_of(written) == 2 * kv_of(explicit)
    binding = bound(request, plan(request).devices)
    assert binding.kv_cache_bytes == kv_of(written)


def test_plan_json_and_the_annotation_are_read_as_they_were_written(unlike) -> None:
    made = plan(unlike)
    for written in (plan_document(made, unlike), plan_annotation(made, unlike)):
        assert type(written).from_json(written.to_json()).to_dict() == written.to_dict()


@pytest.mark.parametrize("kind", [plan_document, plan_annotation])
def test_a_document_without_a_version_is_of_version_1_and_unknown_fields_are_ignored(unlike, kind) -> None:
    written = kind(plan(unlike), unlike)
    older = {name: value for name, value in written.to_dict().items() if name != "version"}
    assert type(written).from_dict(older | {"added": "later"}) == type(written).from_dict(written.to_dict())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"version": 2}, "it has version 2, and this release reads version 1"),
        ({"version": "1"}, "it has version '1', and this release reads version 1"),
        ({"reservedBytes": {}}, "it has no field 'fixed'"),
        ({"reservedBytes": None}, "TypeError: 'NoneType' object is not subscriptable"),
    ],
)
def test_a_document_that_cannot_be_read_is_refused_in_one_line(unlike, changes: dict, why: str) -> None:
    for kind, name in ((plan_document, "plan.json"), (plan_annotation, "the pod's annotation uellm.io/plan")):
        written = kind(plan(unlike), unlike)
        with pytest.raises(UnreadableDocument) as raised:
            type(written).from_dict(written.to_dict() | changes)
        assert str(raised.value) == f"{name} cannot be read: {why}"


def test_memory_that_something_else_holds_is_left_to_it(build) -> None:
    def planned(held: int, *args: str):
        entries = [{**build.gpu("a", 0, "H100").to_dict(), "memoryHeldBytes": held}]
        profile = {"metadata": {"name": "a"}, "status": {"devices": entries}}
        request = replace(build.request(Node.from_profile(profile)), engine=EngineRequest(args=args))
        return plan(request), plan_document(plan(request), request).engine.args

    whole, args = planned(0)
    assert UTILIZATION not in args
    total = build.gpu("a", 0, "H100").memory_bytes
    part, args = planned(total // 4)
    assert args[args.index(UTILIZATION) + 1] == "0.69"  # three quarters of 0.92
    assert part.stages[0].memory.required <= 0.69 * total < whole.stages[0].memory.required
    assert any(
        "a-gpu-0 in use by something outside the cluster: the plan does without, and the engine is started with a "
        "lower --gpu-memory-utilization" in sentence
        for sentence in part.assumptions
    )
    own, args = planned(total // 4, UTILIZATION, "0.6")
    assert args[-2:] == (UTILIZATION, "0.6")
    assert any("see that --gpu-memory-utilization in spec.engine.args does too" in each for each in own.assumptions)
