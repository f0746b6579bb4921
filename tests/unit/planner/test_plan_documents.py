"""What others read of a plan: plan.json, the annotation, the binding in the pod."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest

from uellm.documents import UnreadableDocument
from uellm.errors import PlanError
from uellm.planner import plan
from uellm.planner.handover import late_binding
from uellm.planner.handover.annotation import PlanAnnotation, refusal_on
from uellm.planner.handover.plan_document import PlanDocument
from uellm.planner.handover.publish import plan_annotation, plan_document
from uellm.planner.refusals.sentences import sentence
from uellm.planner.request import EngineRequest, Overrides

ENGINE = EngineRequest("meta-llama/Llama-3.1-8B", "main", "llama", ("--enable-prefix-caching",))


@pytest.fixture
def unlike(build):
    """Four unlike GPUs, any two of which hold the model."""
    devices = [build.gpu("a", index, product) for index, product in enumerate(["L4", "A10", "L4", "A10"])]
    devices[2] = replace(devices[2], memory_bytes=20 << 30)
    node = build.all_links(build.node("a", devices), "PIX")
    # A load and a pace that any two of them keep.
    load, pace = replace(build.workload, requests_per_s=1), (replace(build.chat[0], tpot_s=0.1),)
    return build.request(node, build.node("b", "T4"), gpus_min=2, workload=load, classes=pace, engine=ENGINE)


def document(request) -> dict:
    """The JSON of plan.json."""
    return json.loads(plan_document(plan(request), request).to_json())


def received(request) -> PlanDocument:
    """plan.json as the launcher reads it."""
    return PlanDocument.from_json(plan_document(plan(request), request).to_json())


def annotated(request) -> PlanAnnotation:
    """The annotation as the extender reads it."""
    return PlanAnnotation.from_json(plan_annotation(plan(request), request).to_json())


def test_plan_json_has_the_contracts_fields(unlike) -> None:
    written = document(unlike)
    assert written["version"] == 1
    assert written["platform"] == "cuda"
    assert written["plan"] == plan(unlike).to_dict()
    instance = written["instance"]
    assert len(instance["layerBytes"]) == len(instance["layerKvBytes"]) == instance["layers"] == 32
    assert written["reservedBytes"]["fraction"] == "0.08"
    assert (written["policy"], written["layersOverride"], written["tensor"]) == ("HELR", None, 1)
    assert written["devices"]["a-gpu-1"]["node"] == "a"
    assert len(written["links"]["a"]) == 12
    assert {written["engine"][name] for name in ("model", "revision", "servedName")} == {
        "meta-llama/Llama-3.1-8B",
        "main",
        "llama",
    }


def test_plan_json_holds_the_devices_of_candidate_nodes_alone(unlike) -> None:
    assert sorted(document(unlike)["devices"]) == ["a-gpu-0", "a-gpu-1", "a-gpu-2", "a-gpu-3"]


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
    assert args[:4] == ["--quantization", "fp8", "--dtype", "bfloat16"]  # what the architecture was read with


def test_the_engine_chooses_16_bits_for_a_float32_checkpoint_by_itself(build) -> None:
    request = build.request(build.node("a", "H100"), config={**build.config, "torch_dtype": "float32"})
    assert "--dtype" not in document(request)["engine"]["args"]


def test_passing_facts_are_not_written(unlike) -> None:
    busy = [
        replace(device, memory_free_bytes=5, measured_at="now", allocated_to_pod_uid="pod")
        for device in unlike.nodes[0].node.devices
    ]
    node = replace(unlike.nodes[0].node, devices=tuple(busy))
    later = replace(unlike, nodes=(replace(unlike.nodes[0], node=node), unlike.nodes[1]))
    assert document(later) == document(unlike)


def test_simulated_nodes_are_played_by_a_cpu(build) -> None:
    request = build.request(build.node("a", "tiny tiny", source="Simulated"), config=SMALL, max_model_len=2048)
    assert document(request)["platform"] == "cpu"


def test_a_pod_with_the_planned_devices_gets_the_planned_split(unlike) -> None:
    made = plan(unlike)
    for uuids in itertools.permutations(made.devices):
        binding = late_binding.bind(received(unlike), uuids)
        assert (binding.order, binding.layers, binding.kv_cache_bytes) == (
            made.devices,
            made.layers,
            made.kv_cache_bytes,
        )


def test_a_kept_plan_is_bound_as_planned_although_speeds_were_measured_anew(unlike) -> None:
    made = plan(unlike)
    swapped = [
        replace(device, memory_bytes_per_s=7.8e11 - device.memory_bytes_per_s)
        for device in unlike.nodes[0].node.devices
    ]
    node = replace(unlike.nodes[0].node, devices=tuple(swapped))
    later = replace(unlike, nodes=(replace(unlike.nodes[0], node=node),))
    assert plan(later).layers != made.layers or plan(later).devices != made.devices
    binding = late_binding.bind(plan_document(made, later), made.devices)
    assert (binding.order, binding.layers) == (made.devices, made.layers)


def test_any_devices_that_the_kubelet_may_hand_out_can_be_bound(unlike) -> None:
    written = received(unlike)
    for uuids in itertools.combinations([device.uuid for device in unlike.nodes[0].node.devices], 2):
        binding = late_binding.bind(written, uuids)
        assert sorted(binding.order) == sorted(uuids)
        assert sum(binding.layers) == 32
        assert (binding.tensor, binding.pipeline) == (1, 2)


def test_the_kv_cache_is_told_anew_for_another_split(unlike) -> None:
    written = received(unlike)
    per_token = 4096
    for uuids in itertools.combinations([device.uuid for device in unlike.nodes[0].node.devices], 2):
        binding = late_binding.bind(written, uuids)
        args = late_binding.engine_args(written.engine, binding)
        assert args[args.index("--kv-cache-memory-bytes") + 1] == str(binding.kv_cache_bytes)
        assert args[-1] == "--enable-prefix-caching"
        tokens = binding.kv_cache_bytes // (max(binding.layers) * per_token)
        assert tokens >= written.kv_tokens >= 8192


def test_a_users_kv_cache_is_left_alone_by_the_binding(unlike) -> None:
    request = replace(unlike, engine=EngineRequest("m", args=("--kv-cache-memory-bytes", "1G")))
    written = received(request)
    binding = late_binding.bind(written, ("a-gpu-0", "a-gpu-3"))
    assert binding.kv_cache_bytes is None
    assert late_binding.engine_args(written.engine, binding)[-2:] == ("--kv-cache-memory-bytes", "1G")


def test_given_layers_stay_as_given_on_other_devices(unlike) -> None:
    written = received(replace(unlike, overrides=Overrides(layers=(20, 12))))
    for uuids in itertools.combinations([device.uuid for device in unlike.nodes[0].node.devices], 2):
        assert late_binding.bind(written, uuids).layers == (20, 12)


def test_tensor_groups_are_bound_stage_by_stage(build) -> None:
    node = build.all_links(build.node("a", "L4 L4 L4 L4"))
    request = build.request(node, overrides=Overrides(tensor=2, pipeline=2))
    binding = late_binding.bind(received(request), ("a-gpu-3", "a-gpu-0", "a-gpu-2", "a-gpu-1"))
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
        late_binding.bind(received(unlike), uuids)
    assert raised.value.reason == reason


def test_devices_that_are_too_small_are_refused_with_the_amount(unlike) -> None:
    written = document(unlike)
    for uuid in ("a-gpu-0", "a-gpu-1"):
        written["devices"][uuid]["memoryBytes"] = 9 << 30
    with pytest.raises(PlanError, match=r"[MG]iB are missing") as raised:
        late_binding.bind(PlanDocument.from_dict(written), ("a-gpu-0", "a-gpu-1"))
    assert raised.value.reason == "NoFit"


def test_the_cpu_engines_kv_cache_is_told_in_float32_where_nothing_is_said(build) -> None:
    node = build.node("a", "tiny tiny", source="Simulated")
    request = build.request(node, config=SMALL, max_model_len=2048)
    written, explicit = document(request), document(replace(request, engine=EngineRequest(dtype="bfloat16")))
    assert kv_of(written) == 2 * kv_of(explicit)
    binding = late_binding.bind(received(request), plan(request).devices)
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
        "resourceName": "nvidia.com/gpu",
        "layers": None,
        "service": "default/llama",
    }
    assert written["nodes"] == ["a"]
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
