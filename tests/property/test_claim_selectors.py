"""The selectors of a claim against brute force: they admit the GPUs that may serve a stage, and no other."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from helpers.sizes import GIB
from uellm.hardware import Attribute, Device, Node, PublishedGpu
from uellm.planner.handover.claim import may_serve, published
from uellm.planner.handover.selectors import conditions
from uellm.planner.result import MemoryUse, Stage

PRODUCTS = ("NVIDIA L4", "NVIDIA A100-SXM4-80GB", 'NVIDIA "x" \\ GPU', "NVIDIA H100 PCIe")
NO_MEMORY = MemoryUse(0, 0, 0, 0, 0, 0)


@st.composite
def devices(draw, node):
    count = draw(st.integers(1, 6))
    made = []
    for index in range(count):
        product = draw(st.sampled_from(PRODUCTS))
        capability = draw(st.sampled_from(("8.0", "8.9")))
        memory_bytes = draw(st.sampled_from((16 * GIB, 24 * GIB, 24 * GIB - (5 << 20), 80 * GIB)))
        uuid = f"GPU-{node}-{index}"
        attributes = [Attribute("productName", "string", product)]
        if draw(st.booleans()):
            attributes.append(Attribute("cudaComputeCapability", "version", f"{capability}.0"))
        made.append(
            Device(
                uuid=uuid,
                index=index,
                product=product,
                memory_bytes=memory_bytes,
                compute_capability=capability,
                health_state=draw(st.sampled_from(("Healthy", "Healthy", "Quarantined"))),
                memory_bytes_per_s=draw(st.sampled_from((None, 1e12, 0.5e12))),
                published=PublishedGpu(uuid, memory_bytes, tuple(sorted(attributes))),
            )
        )
    return Node(node, tuple(made))


@given(first=devices("a"), second=devices("b"), data=st.data())
def test_the_selectors_admit_exactly_the_gpus_that_may_serve_the_stage(first, second, data):
    nodes = [first, second]
    everyone = [device for node in nodes for device in node.devices]
    usable = [device for device in everyone if device.usable]
    if not usable:
        return
    planned = data.draw(st.sampled_from(usable))
    least = data.draw(st.integers(1 * GIB, planned.memory_bytes))
    stage = Stage((planned.uuid,), least, planned.product, NO_MEMORY)
    able = {device.uuid for device in everyone if may_serve(device, stage, nodes)}
    wanted = [published(device) for device in everyone if device.uuid in able]
    others = [published(device) for device in everyone if device.uuid not in able]
    chosen = conditions(wanted, others, least)
    admitted = {device.uuid for device in everyone if all(each.matches(published(device)) for each in chosen)}
    assert admitted == able
    assert planned.uuid in able


@given(node=devices("a"), data=st.data())
def test_a_gpu_of_the_same_kind_that_joins_later_is_admitted_unless_another_was_left_out_for_nothing_published(
    node, data
):
    usable = [device for device in node.devices if device.usable]
    if not usable:
        return
    planned = data.draw(st.sampled_from(usable))
    stage = Stage((planned.uuid,), planned.memory_bytes, planned.product, NO_MEMORY)
    able = [published(device) for device in node.devices if may_serve(device, stage, [node])]
    others = [published(device) for device in node.devices if not may_serve(device, stage, [node])]
    chosen = conditions(able, others, planned.memory_bytes)
    joined = replace(published(planned), uuid="GPU-new")
    assert all(each.matches(joined) for each in chosen)
