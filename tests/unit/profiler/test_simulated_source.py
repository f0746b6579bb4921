"""Descriptions of GPUs in files."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from uellm.errors import BadInput
from uellm.profiler.sample import NoGPUs, Sample
from uellm.profiler.simulated import SimulatedSource, described_name

STATUS = {
    "driverVersion": "580.1",
    "devices": [
        {"uuid": "GPU-a", "memoryBytes": 1000, "allocatedTo": {"podUID": "x"}, "measured": {"memoryBytesPerSecond": 5}},
        {"uuid": "GPU-b", "memoryBytes": 2000, "resourceName": "nvidia.com/big"},
    ],
    "links": [{"a": "GPU-a", "b": "GPU-b", "kind": "PHB", "bytesPerSecond": 7}],
}
PROFILE = {"apiVersion": "uellm.io/v1alpha1", "kind": "GPUNodeProfile", "metadata": {"name": "n1"}, "status": STATUS}


def written(path: Path, *documents) -> Path:
    path.write_text(yaml.safe_dump_all(documents))
    return path


@pytest.mark.parametrize("document", [STATUS, PROFILE], ids=["its status alone", "a whole profile"])
def test_a_description_becomes_a_sample(tmp_path, document):
    sample = SimulatedSource(written(tmp_path / "gpus.yaml", document), "any").sample()
    assert sample.source == "Simulated"
    assert sample.driver_version == "580.1"
    assert [(device["index"], device["uuid"], device["memoryBytes"]) for device in sample.devices] == [
        (0, "GPU-a", 1000),
        (1, "GPU-b", 2000),
    ]
    assert sample.devices[0]["measured"] == {"memoryBytesPerSecond": 5}
    assert sample.links == ({"a": "GPU-a", "b": "GPU-b", "kind": "PHB", "bytesPerSecond": 7},)


def test_a_description_never_contains_allocations(tmp_path):
    sample = SimulatedSource(written(tmp_path / "gpus.yaml", STATUS), "any").sample()
    assert all("allocatedTo" not in device for device in sample.devices)


def test_a_directory_describes_the_nodes_that_it_names(tmp_path):
    written(tmp_path / "n1.yaml", STATUS)
    assert len(SimulatedSource(tmp_path, "n1").sample().devices) == 2
    with pytest.raises(NoGPUs, match="n2"):
        SimulatedSource(tmp_path, "n2").sample()


def test_a_node_without_a_file_in_the_directory_uses_the_other_source(tmp_path):
    class Real:
        def sample(self) -> Sample:
            return Sample("NVML", ())

    assert SimulatedSource(tmp_path, "n2", otherwise=Real()).sample().source == "NVML"


def test_of_several_documents_the_one_of_the_node_counts(tmp_path):
    other = {**PROFILE, "metadata": {"name": "n2"}, "status": {"devices": [{"uuid": "GPU-c", "memoryBytes": 1}]}}
    file = written(tmp_path / "all.yaml", PROFILE, other)
    assert [device["uuid"] for device in SimulatedSource(file, "n2").sample().devices] == ["GPU-c"]
    with pytest.raises(BadInput, match="node 'n3'; it holds 0"):
        SimulatedSource(file, "n3").sample()


def test_an_edit_of_the_file_is_seen_by_the_next_sample(tmp_path):
    file = written(tmp_path / "gpus.yaml", STATUS)
    source = SimulatedSource(file, "any")
    assert source.sample() is source.sample()
    written(file, {"devices": [{"uuid": "GPU-new", "memoryBytes": 1}]})
    assert [device["uuid"] for device in source.sample().devices] == ["GPU-new"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"devices": [{"uuid": "GPU-a"}]}, "status.devices[0].memoryBytes"),
        ({"devices": [{"uuid": "GPU-a", "memoryBytes": "1Gi"}]}, "status.devices[0].memoryBytes"),
        ({"devices": [{"uuid": "GPU-a", "memoryBytes": -1}]}, "status.devices[0].memoryBytes"),
        ({"devices": [{"memoryBytes": 1}]}, "status.devices[0].uuid"),
        ({"devices": [{"uuid": "GPU-" + "a" * 60, "memoryBytes": 1}]}, "status.devices[0].uuid"),
        ({"devices": [{"uuid": "GPU-a", "memoryBytes": 1}] * 2}, "status.devices[1]"),
        ({"devices": [{"uuid": "GPU-a", "memoryBytes": 1, "health": {"state": "Odd"}}]}, "devices[0].health.state"),
        ({"devices": []}, "status.devices"),
        ({}, "status.devices"),
        ({"devices": {"uuid": "GPU-a"}}, "status.devices"),
        ({"links": [{"a": "GPU-a", "b": "GPU-z"}]}, "status.links[0].b"),
        ({"links": [{"a": "GPU-a", "b": "GPU-b", "kind": "Rope"}]}, "status.links[0].kind"),
    ],
)
def test_a_bad_description_is_refused_by_the_name_of_its_field(tmp_path, change, field):
    document = {**STATUS, **change} if change else {"driverVersion": "1"}
    file = written(tmp_path / "gpus.yaml", document)
    with pytest.raises(BadInput) as caught:
        SimulatedSource(file, "any").sample()
    assert field in caught.value.field
    assert caught.value.field.startswith(str(file))


@pytest.mark.parametrize("text", ["[1, 2", "- 1", "just text", "", "kind: Pod"])
def test_a_file_that_is_no_description_is_refused_by_its_name(tmp_path, text):
    file = tmp_path / "gpus.yaml"
    file.write_text(text)
    with pytest.raises(BadInput) as caught:
        SimulatedSource(file, "any").sample()
    assert caught.value.field.startswith(str(file))


def test_a_file_that_is_not_there_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match="cannot be read"):
        SimulatedSource(tmp_path / "gone.yaml", "any").sample()


def test_a_file_that_cannot_be_read_is_bad_input_in_a_directory_too(tmp_path):
    (tmp_path / "n1.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput):
        SimulatedSource(tmp_path, "n1").sample()


def test_the_name_of_the_node_is_that_of_the_one_document(tmp_path):
    assert described_name(written(tmp_path / "a.yaml", PROFILE)) == "n1"
    assert described_name(written(tmp_path / "b.yaml", STATUS)) == ""
    assert described_name(written(tmp_path / "c.yaml", PROFILE, PROFILE)) == ""


def test_a_description_that_asks_for_measuring_has_no_rates_of_its_own(tmp_path):
    document = {**STATUS, "measurement": {"on": "CPU"}}
    sample = SimulatedSource(written(tmp_path / "gpus.yaml", document), "any").sample()
    assert sample.measured_on == "CPU"
    assert all("measured" not in device for device in sample.devices)
    assert all("bytesPerSecond" not in link for link in sample.links)
    assert [link["kind"] for link in sample.links] == [link.get("kind", "SYS") for link in STATUS["links"]]


def test_any_other_description_keeps_its_rates(tmp_path):
    sample = SimulatedSource(written(tmp_path / "gpus.yaml", STATUS), "any").sample()
    assert sample.measured_on == ""
    assert sample.devices[0]["measured"] == {"memoryBytesPerSecond": 5}
