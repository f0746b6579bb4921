"""The layers placed on the devices that a pod really got."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from helpers.plan_documents import advice, bound, received
from uellm.errors import PlanError
from uellm.hardware import Device
from uellm.planner import plan
from uellm.planner.handover import late_binding
from uellm.planner.handover.device_facts import (
    DeviceFacts,
)
from uellm.planner.handover.publish import plan_document
from uellm.planner.request import EngineRequest, Overrides


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
    # The A10 is twice as fast, by the rates of its class, which are rounded down.
    layers = dict(zip(binding.order, binding.layers, strict=True))
    assert layers["GPU-new-0"] > layers["GPU-new-1"]
    assert {device.uuid: device.memory_bytes_per_s for device in binding.devices} == {
        "GPU-new-0": 5.16e11,
        "GPU-new-1": 2.59e11,
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
