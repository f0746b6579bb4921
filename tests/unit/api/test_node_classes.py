"""GPUNodeClass: bad input is one line that names the field; what its GPUs are labelled with."""

from __future__ import annotations

from typing import Any

import pytest

from uellm.api import parse_node_class
from uellm.api.node_class_facts import class_document, class_name, class_node, device_summary
from uellm.api.node_labels import describes_gpus, gpu_labels
from uellm.errors import BadInput
from uellm.hardware import Device, Link, Node

GIB = 1 << 30


def document(**spec: Any) -> dict[str, Any]:
    devices = [{"index": index, "memoryBytes": 80 * GIB} for index in range(2)]
    return {
        "apiVersion": "uellm.io/v1alpha1",
        "kind": "GPUNodeClass",
        "metadata": {"name": "p5"},
        "spec": {"devices": devices, **spec},
    }


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ({"devices": []}, "spec.devices: Tuple should have at least 1 item after validation, not 0, not []"),
        (
            {"devices": [{"index": 1, "memoryBytes": 1}]},
            "spec.devices: must be numbered from 0 on, without gaps",
        ),
        (
            {"devices": [{"index": 0, "memoryBytes": 1}, {"index": 0, "memoryBytes": 1}]},
            "spec.devices[1]: has the index of another entry",
        ),
        ({"devices": [{"index": 0}]}, "spec.devices[0].memoryBytes: is required"),
        ({"links": [{"a": 0, "b": 2}]}, "spec.links: must name only indices of devices"),
        ({"price": 3}, "spec.price: is not a field of this resource"),
    ],
)
def test_bad_input_in_a_class_is_one_line_that_names_the_field(spec, line):
    with pytest.raises(BadInput) as refused:
        parse_node_class(document(**spec))
    assert str(refused.value) == line


def h100(index: int) -> Device:
    product = "NVIDIA H100 80GB HBM3"
    return Device(f"GPU-{index}", index, product, 85_520_809_984, compute_capability="9.0", bf16_flops_per_s=8e14)


def test_the_class_of_a_node_gives_back_the_node_with_made_up_uuids():
    links = (Link("GPU-0", "GPU-1", "NVLink", 4e11, 1.5e-5), Link("GPU-0", "GPU-gone"))
    node = Node("n1", (h100(0), h100(1)), links)
    made = class_node(parse_node_class(class_document(node, class_name(node), {"a": "b"})))
    assert made.name == "class 2x-nvidia-h100-80gb-hbm3"
    assert [device.uuid for device in made.devices] == [f"{made.name}#0", f"{made.name}#1"]
    assert [(device.product, device.bf16_flops_per_s) for device in made.devices] == [
        ("NVIDIA H100 80GB HBM3", 8e14)
    ] * 2
    assert made.links == (Link(f"{made.name}#0", f"{made.name}#1", "NVLink", 4e11, 1.5e-5),)


def test_the_labels_of_alike_gpus_are_those_of_gpu_feature_discovery():
    assert gpu_labels((h100(0), h100(1)), simulated=False) == {
        "nvidia.com/gpu.count": "2",
        "nvidia.com/gpu.memory": "81559",
        "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
        "nvidia.com/gpu.compute.major": "9",
        "nvidia.com/gpu.compute.minor": "0",
    }


def test_labels_of_gpus_are_told_from_labels_of_the_node():
    own = ["nvidia.com/gpu.count", "uellm.io/gpu.memory", "nvidia.com/mig-1g.10gb.count"]
    others = ["node.kubernetes.io/instance-type", "nvidia.com/gpu", "karpenter.sh/nodepool"]
    assert [describes_gpus(key) for key in (*own, *others)] == [True] * 3 + [False] * 3


def test_the_summary_counts_the_products():
    node = class_node(parse_node_class(document()))
    assert device_summary(node.devices) == {"gpus": "2", "products": "2 x GPU"}
