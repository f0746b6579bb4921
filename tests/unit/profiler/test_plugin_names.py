"""What a simulated device plugin calls its devices, and what the profiler makes of these names."""

from __future__ import annotations

import pytest
import yaml

from uellm.errors import BadInput
from uellm.profiler.device_names import Names
from uellm.profiler.deviceplugin import offers
from uellm.profiler.plugin_names import DevicePluginNames
from uellm.profiler.sample import Sample
from uellm.profiler.simulated import SimulatedSource

A = {"index": 0, "uuid": "GPU-0000-a", "memoryBytes": 1}
B = {"index": 1, "uuid": "GPU-0000-b", "memoryBytes": 1}
SLICE = {"index": 3, "uuid": "MIG-0000-07", "memoryBytes": 1, "mig": True}


@pytest.mark.parametrize(
    ("scheme", "device", "names"),
    [
        ({}, A, ["GPU-0000-a"]),
        ({"replicas": 2}, A, ["GPU-0000-a::0", "GPU-0000-a::1"]),
        ({"names": "Index"}, B, ["1"]),
        ({"names": "Index"}, SLICE, ["3:7"]),
        ({"names": "GKE"}, B, ["nvidia1"]),
        ({"names": "GKE", "replicas": 2}, B, ["nvidia1/vgpu0", "nvidia1/vgpu1"]),
        ({"names": "GKE"}, SLICE, ["nvidia3/gi7"]),
        ({"names": "HAMi"}, A, ["GPU-0000-a-0"]),
        ({"names": "HAMi", "replicas": 2}, A, ["GPU-0000-a-0", "GPU-0000-a-1"]),
        ({"names": "Opaque"}, A, ["vgpu-a0"]),
    ],
)
def test_each_scheme_names_a_device_as_its_plugin_does(scheme, device, names):
    assert list(DevicePluginNames(**scheme).of(device)) == names


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("scheme", ["UUID", "GKE", "HAMi"])
def test_the_profiler_reads_each_name_back(scheme, replicas):
    names = DevicePluginNames(names=scheme, replicas=replicas)
    sample = Sample("Simulated", (A, B), plugin_names=names)
    for device in offers(sample):
        assert Names(sample).devices(device.id) == (device.uuid,)


def test_a_description_says_what_its_plugin_calls_the_devices(tmp_path):
    file = tmp_path / "node-1.yaml"
    document = {"devices": [A, SLICE], "devicePlugin": {"names": "GKE", "replicas": 2, "renamed": True}}
    file.write_text(yaml.safe_dump(document))
    sample = SimulatedSource(file, "node-1").sample()
    assert sample.plugin_names.resource("nvidia.com/gpu") == "nvidia.com/gpu.shared"
    assert [device.id for device in offers(sample)] == [
        *("nvidia0/vgpu0", "nvidia0/vgpu1"),
        *("nvidia3/gi7/vgpu0", "nvidia3/gi7/vgpu1"),
    ]
    assert Names(sample).devices("nvidia3/gi7/vgpu1") == (SLICE["uuid"],)


def test_a_scheme_that_there_is_not_is_refused_by_name(tmp_path):
    file = tmp_path / "node-1.yaml"
    file.write_text(yaml.safe_dump({"devices": [A], "devicePlugin": {"names": "Serial"}}))
    with pytest.raises(BadInput, match=r"status\.devicePlugin\.names"):
        SimulatedSource(file, "node-1").sample()
