"""`uellm profile`, `uellm profiler` and `uellm device-plugin`, as a user and as the kubelet runs them."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest
import yaml

from uellm.api import parse_node_class, parse_profile
from uellm.api.node_class_facts import class_node
from uellm.cli.main import main
from uellm.profiler.nvml import NVMLSource

STATUS = {
    "driverVersion": "580.1",
    "devices": [
        {
            "uuid": "GPU-a",
            "product": "NVIDIA A",
            "memoryBytes": 24 * 2**30,
            "measured": {"bf16GigaflopsPerSecond": 120_000, "memoryBytesPerSecond": 900_000_000_000},
        },
        {"uuid": "GPU-b", "product": "NVIDIA B", "memoryBytes": 16 * 2**30, "health": {"state": "Quarantined"}},
    ],
    "links": [{"a": "GPU-a", "b": "GPU-b", "kind": "PHB", "bytesPerSecond": 12 * 10**9, "latencyNanoseconds": 9000}],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "node-1.yaml"
    file.write_text(yaml.safe_dump({"kind": "GPUNodeProfile", "metadata": {"name": "n1"}, "status": STATUS}))
    return file


def test_profile_shows_a_table(file, capsys):
    assert main(["profile", "--simulate", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "n1: 2 devices, source Simulated, driver 580.1"
    assert lines[3].split() == (
        ["0", "GPU-a", "NVIDIA", "A", "24.0", "GiB", "-", "-", "-", "120.0", "TFLOP/s", "900.0", "GB/s", "Healthy", "-"]
    )
    assert "Quarantined" in lines[4]
    assert lines[7].split() == ["GPU", "0", ".", "PHB", "12.0", "GB/s", "9", "us"]


@pytest.mark.parametrize(("output", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_profile_prints_a_document_that_the_planner_takes(file, capsys, output, load):
    assert main(["profile", "--simulate", str(file), "-o", output]) == 0
    profile = parse_profile(load(capsys.readouterr().out))
    assert profile.metadata["name"] == "n1"
    assert profile.status is not None
    assert [device.uuid for device in profile.status.devices] == ["GPU-a", "GPU-b"]


def test_profile_prints_the_class_of_nodes_like_this_one(file, capsys):
    label = "node.kubernetes.io/instance-type=g5.12xlarge"
    assert main(["profile", "--simulate", str(file), "-o", "class", "--label", label]) == 0
    document = yaml.safe_load(capsys.readouterr().out)
    node = class_node(parse_node_class(document))
    assert document["metadata"]["name"] == "1x-nvidia-a-1x-nvidia-b"
    assert (node.name, node.simulated) == ("class 1x-nvidia-a-1x-nvidia-b", False)
    assert [(device.product, device.memory_bytes) for device in node.devices] == [
        ("NVIDIA A", 24 * 2**30),
        ("NVIDIA B", 16 * 2**30),
    ]
    assert node.devices[0].bf16_flops_per_s == 120e12
    assert [(link.a, link.b, link.bytes_per_s) for link in node.links] == [
        (node.devices[0].uuid, node.devices[1].uuid, 12e9)
    ]
    # GPU Feature Discovery cannot describe unlike GPUs, so these are the profiler's own labels.
    assert node.labels == {
        "node.kubernetes.io/instance-type": "g5.12xlarge",
        "uellm.io/gpu.count": "2",
        "uellm.io/gpu.memory": "16384",
        "uellm.io/gpu.unlike": "true",
    }


def test_the_class_of_simulated_gpus_is_asked_for_by_name(file, capsys):
    assert main(["profile", "--simulate", str(file), "-o", "class", "--simulated", "--class-name", "sim"]) == 0
    node = class_node(parse_node_class(yaml.safe_load(capsys.readouterr().out)))
    assert (node.name, node.simulated) == ("class sim", True)
    assert node.labels["uellm.io/gpu.simulated"] == "true"


def test_a_label_of_a_class_that_is_none_is_one_clear_line(file, capsys):
    assert main(["profile", "--simulate", str(file), "-o", "class", "--label", "no label"]) == 2
    assert capsys.readouterr().err == (
        "uellm profile: --label: 'no label' is not KEY=VALUE, such as node.kubernetes.io/instance-type=p5.48xlarge\n"
    )


def test_profile_shows_real_gpus_and_what_failed(nvml, capsys, monkeypatch):
    library = nvml.Library(nvml.GPU("GPU-a", lost=True), nvml.GPU("GPU-b", name="NVIDIA H100"))
    monkeypatch.setattr("uellm.cli.profile.NVMLSource", lambda: NVMLSource(library))
    monkeypatch.setattr("uellm.cli.profile.podresources.SOCKET", "/nowhere/kubelet.sock")
    assert main(["profile", "--node", "n2"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("n2: 1 devices, source NVML, driver 580.65.06, CUDA 13.1\n")
    assert "GPU 0 has fallen off the bus" in text
    assert "NVIDIA H100" in text


def test_profile_without_a_gpu_is_one_clear_line(nvml, capsys, monkeypatch):
    monkeypatch.setattr("uellm.cli.profile.NVMLSource", lambda: NVMLSource(nvml.Library(init_error=12)))
    assert main(["profile"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "no NVIDIA driver here" in captured.err
    assert "--simulate" in captured.err


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["profile", "--simulate", "{dir}/gone.yaml"], "gone.yaml"),
        (["profiler", "--simulate", "{file}"], "--node"),
        (["profiler", "--node", "n1", "--interval", "0", "--simulate", "{file}"], "--interval"),
        (["profiler", "--node", "n1", "--interval", "nan", "--simulate", "{file}"], "--interval"),
        (["profiler", "--node", "n1", "--simulate", "{dir}/gone.yaml"], "gone.yaml"),
        (["profiler", "--node", "n1", "--network-listen", ":8009"], "--network-listen: goes with --network-peers"),
        (
            ["profiler", "--node", "n1", "--network-listen", ":8009", "--network-peers", "labels"],
            "--network-peers: must be NAMESPACE/KEY=VALUE,..., not 'labels'",
        ),
        (["device-plugin", "--simulate", "{dir}"], "--node"),
        (["device-plugin", "--simulate", "{file}", "--plugin-dir", "{dir}/gone"], "--plugin-dir"),
        (["device-plugin", "--simulate", "{dir}/gone.yaml", "--plugin-dir", "{dir}"], "gone.yaml"),
    ],
)
def test_bad_arguments_are_exit_2_and_name_the_field(file, capsys, monkeypatch, arguments, field):
    monkeypatch.delenv("NODE_NAME", raising=False)
    filled = [argument.format(dir=file.parent, file=file) for argument in arguments]
    assert main(filled) == 2
    error = capsys.readouterr().err
    assert field in error
    assert error.count("\n") == 1


async def test_the_device_plugin_serves_until_sigterm_and_leaves_no_socket(file, kubelet):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "uellm.cli.main", "device-plugin", "--simulate", str(file)),
        *("--plugin-dir", str(kubelet.directory)),
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        assert process.stderr is not None
        while b"registered nvidia.com/gpu" not in await process.stderr.readline():
            pass
        assert list(kubelet.directory.glob("uellm-*.sock"))
        process.send_signal(signal.SIGTERM)
        await process.communicate()
    assert process.returncode == 0
    assert list(kubelet.directory.glob("uellm-*.sock")) == []


async def test_the_profiler_without_a_cluster_says_so(file, tmp_path):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "uellm.cli.main", "profiler", "--node", "n1", "--simulate", str(file)),
        *("--kubeconfig", str(tmp_path / "gone")),
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        _, errors = await process.communicate()
    assert process.returncode == 1
    assert b"no cluster to talk to" in errors
