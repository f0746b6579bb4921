"""Where the layers go on the pods of a replica that spans nodes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.launch import plan_document
from helpers.sizes import GIB
from uellm.errors import PlanError
from uellm.hardware import Device
from uellm.planner.assignment.every_subset import room
from uellm.planner.assignment.feasibility import needs
from uellm.planner.assignment.parts import part_tasks, parts_of
from uellm.planner.handover.device_facts import DeviceFacts
from uellm.planner.handover.group_binding import PodDevices, bind_group
from uellm.planner.handover.plan_document import PlanDocument


def document(layers, nodes, **changes):
    shape = {
        "gpusPerReplica": len(layers),
        "tensor": 1,
        "pipeline": len(layers),
        "layers": list(layers),
        "nodes": nodes,
    }
    whole = {"plan": shape, "layersOverride": None, "classes": [{"product": "any", "memoryBytes": 24 * GIB}], **changes}
    return PlanDocument.from_dict(plan_document(**whole))


def pods(*memories):
    """A pod for each list of its devices' memory, in GiB."""
    found = []
    for index, sizes in enumerate(memories):
        devices = [Device(f"GPU-{index}-{at}", at, "any", size * GIB) for at, size in enumerate(sizes)]
        facts = DeviceFacts({device.uuid: device for device in devices})
        found.append(PodDevices(f"pod-{index}", tuple(facts.devices), facts))
    return found


def test_the_planned_split_on_the_planned_devices():
    bound = bind_group(document((5, 3), 2), pods([24], [16]))
    assert (bound.order, bound.layers, bound.tensor, bound.pipeline) == (("GPU-0-0", "GPU-1-0"), (5, 3), 1, 2)


def test_the_stages_of_a_pod_stay_on_it_whatever_the_order_of_the_pods():
    bound = bind_group(document((3, 2, 2, 1), 2), pods([16, 16], [24, 24]))
    assert {uuid[:5] for uuid in bound.order[:2]} == {"GPU-0"}
    assert sum(bound.layers) == 8


def test_a_pod_with_unlike_devices_has_the_longer_stage_on_the_larger():
    bound = bind_group(document((5, 1, 1, 1), 2), pods([8, 24], [16, 16]))
    assert bound.order[0] == "GPU-0-1"


def test_a_part_that_fits_no_way_as_planned_is_split_anew_inside_its_pod():
    # Four layers of 3 GiB do not fit on 12 GiB beside one on another, but two and three do.
    bound = bind_group(document((4, 1, 2, 1), 2), pods([12, 12], [12, 12]))
    assert sum(bound.layers[:2]) in (5, 3)
    assert max(bound.layers) <= 3


def test_a_split_that_the_user_set_is_never_changed():
    with pytest.raises(PlanError, match=r"the GPUs of the group cannot hold the plan: pod pod-0 cannot hold its part"):
        bind_group(document((5, 3), 2, layersOverride=[5, 3]), pods([16], [24]))


def test_another_number_of_devices_is_refused_by_the_name_of_the_pod():
    with pytest.raises(PlanError, match=r"pod pod-1 has 2 GPUs and each of the 2 pods of a replica is to have 1"):
        bind_group(document((5, 3), 2), pods([24], [24, 24]))


def test_the_kv_cache_is_that_of_the_tightest_stage_of_all_nodes():
    wide = bind_group(document((4, 4), 2, platform="cuda", kvTokens=1000), pods([80], [80])).kv_cache_bytes
    tight = bind_group(document((4, 4), 2, platform="cuda", kvTokens=1000), pods([80], [24])).kv_cache_bytes
    assert tight < wide


def test_only_the_ends_of_the_pipeline_hold_the_ends_of_the_model():
    task = document((3, 2, 2, 1), 2).task
    first, last = part_tasks(task, (3, 2, 2, 1), 2)
    assert (first.first_bytes, first.last_bytes) == (task.first_bytes, 0)
    assert (last.first_bytes, last.last_bytes) == (0, task.last_bytes)
    assert (first.layers_override, last.layers_override) == ((3, 2), (2, 1))


@given(
    st.lists(st.integers(1, 3), min_size=4, max_size=4).filter(lambda layers: sum(layers) == 8),
    st.lists(st.sampled_from((8, 12, 16, 24)), min_size=4, max_size=4),
)
def test_whatever_order_of_the_parts_fits_is_found_and_what_is_found_fits(layers, sizes):
    plan = document(layers, 2)
    group = pods(sizes[:2], sizes[2:])
    rooms = {uuid: room(device, plan.task) for pod in group for uuid, device in pod.seen.devices.items()}
    fits = any(
        all(need <= rooms[uuid] for need, uuid in zip(needs(plan.task, sum(parts, ())), (*a, *b), strict=True))
        for parts in itertools.permutations(parts_of(tuple(layers), 2))
        for a in itertools.permutations(group[0].uuids)
        for b in itertools.permutations(group[1].uuids)
    )
    try:
        bound = bind_group(plan, group)
    except PlanError:
        assert not fits
        return
    assert sum(bound.layers) == 8
    assert set(bound.order[:2]) == set(group[0].uuids)
    assert all(need <= rooms[uuid] for need, uuid in zip(needs(plan.task, bound.layers), bound.order, strict=True))
