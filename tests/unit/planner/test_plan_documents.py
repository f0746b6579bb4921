"""What other programs read of a plan: plan.json, the annotation, the binding in the pod."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest

from uellm.documents import UnreadableDocument
from uellm.errors import PlanError
from uellm.hardware import GPU_RESOURCE, Device
from uellm.planner import plan
from uellm.planner.handover import late_binding
from uellm.planner.handover.annotation import PlanAnnotation, refusal_on
from uellm.planner.handover.device_facts import (
    MOST_NODES,
    DeviceFacts,
    NodeJson,
    facts_of,
    joined,
    nodes_for_facts,
)
from uellm.planner.handover.plan_document import PlanDocument
from uellm.planner.handover.publish import plan_annotation, plan_document
from uellm.planner.refusals.sentences import sentence
from uellm.planner.request import EngineRequest, NodeOffer, Overrides

ENGINE = EngineRequest("meta-llama/Llama-3.1-8B", "main", "llama", ("--enable-prefix-caching",))


@pytest.fixture
def unlike(build):
    """Four unlike GPUs; any two of them can hold the model."""
    devices = [build.gpu("a", index, product) for index, product in enumerate(["L4", "A10", "L4", "A10"])]
    devices[2] = replace(devices[2], memory_bytes=20 << 30)
    node = build.all_links(build.node("a", devices), "PIX")
    # A load and a pace that any two of them can serve.
    load, pace = replace(build.workload, requests_per_s=1), (replace(build.chat[0], tpot_s=0.1),)
    return build.request(node, build.node("b", "T4"), gpus_min=2, workload=load, classes=pace, engine=ENGINE)


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
    assert written["classes"][0]["measured"] == {"bf16GigaflopsPerSecond": 110_000, "memoryBytesPerSecond": 520 * 10**9}
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


def test_a_pod_with_the_planned_devices_gets_the_planned_split(unlike) -> None:
    made = plan(unlike)
    for uuids in itertools.permutations(made.devices):
        binding = bound(unlike, uuids)
        assert (binding.order, binding.layers, binding.kv_cache_bytes) == (
            made.devices,
            made.layers,
            made.kv_cache_bytes,
        )


def test_a_kept_plan_is_bound_as_planned_after_new_measurements(unlike) -> None:
    made = plan(unlike)
    swapped = [
        replace(device, memory_bytes_per_s=7.8e11 - device.memory_bytes_per_s)
        for device in unlike.nodes[0].node.devices
    ]
    node = replace(unlike.nodes[0].node, devices=tuple(swapped))
    later = replace(unlike, nodes=(replace(unlike.nodes[0], node=node),))
    assert plan(later).layers != made.layers or plan(later).devices != made.devices
    current = replace(advice(unlike), devices={device.uuid: device for device in swapped})
    binding = late_binding.bind(plan_document(made, later), made.devices, advice=current)
    assert (binding.order, binding.layers) == (made.devices, made.layers)


def test_any_devices_that_the_kubelet_may_hand_out_can_be_bound(unlike) -> None:
    for uuids in itertools.combinations([device.uuid for device in unlike.nodes[0].node.devices], 2):
        binding = bound(unlike, uuids)
        assert sorted(binding.order) == sorted(uuids)
        assert sum(binding.layers) == 32
        assert (binding.tensor, binding.pipeline) == (1, 2)


def test_the_kv_cache_flag_changes_with_the_split(unlike) -> None:
    written = received(unlike)
    per_token = 4096
    for uuids in itertools.combinations([device.uuid for device in unlike.nodes[0].node.devices], 2):
        binding = bound(unlike, uuids)
        args = late_binding.engine_args(written.engine, binding)
        assert args[args.index("--kv-cache-memory-bytes") + 1] == str(binding.kv_cache_bytes)
        assert args[-1] == "--enable-prefix-caching"
        tokens = binding.kv_cache_bytes // (max(binding.layers) * per_token)
        assert tokens >= written.kv_tokens >= 8192


def test_the_binding_keeps_a_users_kv_cache(unlike) -> None:
    request = replace(unlike, engine=EngineRequest("m", args=("--kv-cache-memory-bytes", "1G")))
    written = received(request)
    binding = late_binding.bind(written, ("a-gpu-0", "a-gpu-3"), advice=advice(request))
    assert binding.kv_cache_bytes is None
    assert late_binding.engine_args(written.engine, binding)[-2:] == ("--kv-cache-memory-bytes", "1G")


def test_given_layers_stay_as_given_on_other_devices(unlike) -> None:
    request = replace(unlike, overrides=Overrides(layers=(20, 12)))
    for uuids in itertools.combinations([device.uuid for device in unlike.nodes[0].node.devices], 2):
        assert bound(request, uuids).layers == (20, 12)


def test_tensor_groups_are_bound_stage_by_stage(build) -> None:
    node = build.all_links(build.node("a", "L4 L4 L4 L4"))
    request = build.request(node, overrides=Overrides(tensor=2, pipeline=2))
    binding = bound(request, ("a-gpu-3", "a-gpu-0", "a-gpu-2", "a-gpu-1"))
    assert (binding.tensor, binding.pipeline, len(binding.order), len(binding.layers)) == (2, 2, 4, 2)


@pytest.mark.parametrize(
    ("uuids", "reason"),
    [
        (("a-gpu-0", "GPU-elsewhere"), "UnknownDevice"),
        (("a-gpu-0",), "WrongDeviceCount"),
        (("a-gpu-0", "a-gpu-0"), "WrongDeviceCount"),
        (("a-gpu-0", "a-gpu-1", "a-gpu-2"), "WrongDeviceCount"),
    ],
)
def test_devices_that_cannot_be_bound_are_refused(unlike, uuids: tuple[str, ...], reason: str) -> None:
    with pytest.raises(PlanError) as raised:
        bound(unlike, uuids)
    assert raised.value.reason == reason


def test_devices_that_are_too_small_are_refused_with_the_amount(unlike) -> None:
    small = {uuid: replace(device, memory_bytes=9 << 30) for uuid, device in advice(unlike).devices.items()}
    with pytest.raises(PlanError, match=r"[MG]iB are missing") as raised:
        late_binding.bind(received(unlike), ("a-gpu-0", "a-gpu-1"), seen=DeviceFacts(small))
    assert raised.value.reason == "NoFit"


def test_a_node_that_joined_after_the_plan_was_made_is_bound_by_what_its_driver_says(unlike) -> None:
    made = plan(unlike)
    seen = {
        "GPU-new-0": Device("GPU-new-0", 0, "A10", int(22.5 * (1 << 30)) - (3 << 20), compute_capability="8.6"),
        "GPU-new-1": Device("GPU-new-1", 1, "L4", int(22.5 * (1 << 30)), compute_capability="8.9"),
    }
    binding = late_binding.bind(received(unlike), tuple(seen), seen=DeviceFacts(seen))
    assert sorted(binding.order) == ["GPU-new-0", "GPU-new-1"]
    # The A10 is twice as fast, by the rates of its class.
    layers = dict(zip(binding.order, binding.layers, strict=True))
    assert layers["GPU-new-0"] > layers["GPU-new-1"]
    assert {device.uuid: device.memory_bytes_per_s for device in binding.devices} == {
        "GPU-new-0": 5.2e11,
        "GPU-new-1": 2.6e11,
    }
    assert made.devices != binding.order


def test_a_plan_for_one_class_of_gpus_is_bound_even_where_nothing_says_what_the_devices_are(build) -> None:
    request = build.request(build.node("a", "L4 L4"), gpus_min=2)
    binding = late_binding.bind(received(request), ("GPU-x", "GPU-y"))
    assert (sorted(binding.order), sum(binding.layers)) == (["GPU-x", "GPU-y"], 32)


def test_measured_differences_between_gpus_of_a_class_move_layers(build) -> None:
    request = build.request(build.node("a", "L4 L4 L4"), overrides=Overrides(pipeline=2))
    known = advice(request).devices
    slow = {**known, "a-gpu-2": replace(known["a-gpu-2"], memory_bytes_per_s=1.3e11)}
    binding = late_binding.bind(received(request), ("a-gpu-1", "a-gpu-2"), advice=DeviceFacts(slow))
    layers = dict(zip(binding.order, binding.layers, strict=True))
    assert layers["a-gpu-1"] > layers["a-gpu-2"]


def test_a_slice_whose_memory_the_driver_does_not_tell_is_of_its_products_class(build) -> None:
    slices = [
        replace(build.gpu("a", index, "H100", mig=True, memory_bytes=memory), product=f"NVIDIA H100 MIG {name}")
        for index, (name, memory) in enumerate([("3g.40gb", 40 << 30), ("4g.40gb", 41 << 30)])
    ]
    request = build.request(build.node("a", slices), gpus_max=1)
    seen = Device("MIG-new", 0, "NVIDIA H100 MIG 3g.40gb", 0, mig=True)
    binding = late_binding.bind(received(request), ("MIG-new",), seen=DeviceFacts({"MIG-new": seen}))
    assert binding.devices[0].memory_bytes == 40 << 30
    unknown = replace(seen, product="NVIDIA H100 MIG 1g.10gb")
    with pytest.raises(PlanError, match="device MIG-new is unknown"):
        late_binding.bind(received(request), ("MIG-new",), seen=DeviceFacts({"MIG-new": unknown}))


def test_the_cpu_engines_kv_cache_is_sized_in_float32_by_default(build) -> None:
    node = build.node("a", "tiny tiny", source="Simulated")
    request = build.request(node, config=SMALL, max_model_len=2048)
    written, explicit = document(request), document(replace(request, engine=EngineRequest(dtype="bfloat16")))
    assert kv_of(written) == 2 * kv_of(explicit)
    binding = bound(request, plan(request).devices)
    assert binding.kv_cache_bytes == kv_of(written)


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
