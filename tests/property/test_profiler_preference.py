"""The device plugin's preferred allocation, for any devices and any request of the kubelet."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from uellm.profiler.deviceplugin import OfferedDevice, preferred


@st.composite
def questions(draw):
    count = draw(st.integers(1, 8))
    numa = draw(st.lists(st.sampled_from([None, 0, 1, 2]), min_size=count, max_size=count))
    devices = [OfferedDevice(f"GPU-{index}", True, node) for index, node in enumerate(numa)]
    available = draw(st.lists(st.sampled_from([device.uuid for device in devices]), unique=True, min_size=1))
    required = draw(st.lists(st.sampled_from(available), unique=True))
    size = draw(st.integers(max(1, len(required)), len(available)))
    return devices, available, required, size


@given(questions())
def test_the_preferred_allocation_has_the_requested_size_and_all_required_devices(question):
    devices, available, required, size = question
    advice = preferred(devices, available, required, size)
    assert len(advice) == len(set(advice)) == size
    assert set(required) <= set(advice) <= set(available)


@given(questions(), st.randoms())
def test_the_preferred_allocation_does_not_depend_on_the_order_of_the_request(question, random):
    devices, available, required, size = question
    shuffled = random.sample(available, len(available))
    assert preferred(devices, shuffled, required, size) == preferred(devices, available, required, size)


@given(questions())
def test_the_preferred_allocation_crosses_numa_nodes_only_if_necessary(question):
    devices, available, required, size = question
    node = {device.uuid: device.numa_node for device in devices}
    groups = [[uuid for uuid in available if node[uuid] == one] for one in {node[uuid] for uuid in available}]
    if any(len(group) >= size and set(required) <= set(group) for group in groups):
        assert len({node[uuid] for uuid in preferred(devices, available, required, size)}) == 1
