"""The profiler and the device plugin of the chart: on which nodes they run, and with what rights."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from helpers.chart import (
    CHART,
    POLICIES,
    ROOT,
    SIMULATED,
    Render,
    environment,
    named,
    of_kind,
    profiler_of,
)
from uellm.api import parse
from uellm.api.gpunodeprofile import GPUNodeProfileStatus

# helm itself may have to be built first.
pytestmark = pytest.mark.timeout(600)


def node_terms(objects: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    affinity = named(objects, "DaemonSet", name)["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    terms: list[dict[str, Any]] = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return terms


def test_the_profiler_runs_where_the_gpu_operator_found_gpus(render: Render) -> None:
    objects = render()
    expression = {"key": "nvidia.com/gpu.present", "operator": "In", "values": ["true"]}
    assert node_terms(objects, "uellm-profiler") == [{"matchExpressions": [expression]}]
    pod = named(objects, "DaemonSet", "uellm-profiler")["spec"]["template"]["spec"]
    assert pod["runtimeClassName"] == "nvidia"
    # NVIDIA's runtime refuses a container with this variable that lacks CAP_SYS_ADMIN.
    assert "NVIDIA_MIG_MONITOR_DEVICES" not in {entry["name"] for entry in pod["containers"][0]["env"]}
    assert "--simulate=/etc/uellm/simulate" not in pod["containers"][0]["args"]


@pytest.mark.parametrize("given", [{"gpu-node": "yes"}, {"nvidia.com/gpu.present": None, "gpu-node": "yes"}])
def test_labels_of_gpu_nodes_replace_nvidia_s(render: Render, given: dict[str, Any]) -> None:
    expression = {"key": "gpu-node", "operator": "In", "values": ["yes"]}
    objects = render({"profiler": {"nodeLabels": given}})
    assert node_terms(objects, "uellm-profiler") == [{"matchExpressions": [expression]}]


@pytest.mark.parametrize("given", [{}, {"nvidia.com/gpu.present": None}])
def test_empty_labels_mean_every_node_also_as_they_were_written_for_earlier_releases(
    render: Render, given: dict[str, Any]
) -> None:
    pod = named(render({"profiler": {"nodeLabels": given}}), "DaemonSet", "uellm-profiler")["spec"]["template"]["spec"]
    assert "affinity" not in pod
    described = {"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-1", "node-2"]}
    simulated = render({"profiler": {"nodeLabels": given}}, simulated=True)
    assert node_terms(simulated, "uellm-profiler") == [{"matchExpressions": [described]}]


def test_an_upgrade_that_keeps_all_values_of_an_earlier_release_keeps_the_profiler_s_nodes(render: Render) -> None:
    kept = {"profiler": {"nodeLabels": {"nvidia.com/gpu.present": "true"}}}
    assert node_terms(render(kept), "uellm-profiler") == node_terms(render(), "uellm-profiler")


def platform(heading: str) -> dict[str, Any]:
    """The values that the guide gives for a platform."""
    text = (ROOT / "docs" / "how-to" / "gpu-nodes.md").read_text()
    section = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    values: dict[str, Any] = yaml.safe_load(section.split("```yaml\n", 1)[1].split("```", 1)[0])
    return values


def test_the_profiler_asks_for_every_gpu_and_drops_every_right_by_default(render: Render) -> None:
    template, container = profiler_of(render())
    assert environment(container)["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert template["spec"]["runtimeClassName"] == "nvidia"
    assert template["spec"]["securityContext"]["runAsUser"] == 0
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_on_gke_the_driver_is_a_directory_of_the_node(render: Render) -> None:
    template, container = profiler_of(render(platform("GKE")))
    assert "runtimeClassName" not in template["spec"]
    # The API server refuses a privileged container that must not escalate.
    assert container["securityContext"] == {"privileged": True, "readOnlyRootFilesystem": True}
    assert environment(container)["LD_LIBRARY_PATH"] == "/usr/local/nvidia/lib64"
    assert {"name": "driver", "mountPath": "/usr/local/nvidia", "readOnly": True} in container["volumeMounts"]
    assert [each["hostPath"]["path"] for each in template["spec"]["volumes"]] == [
        "/var/lib/kubelet/pod-resources",
        "/var/lib/uellm/measurements",
        "/home/kubernetes/bin/nvidia",
    ]
    (term,) = template["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert [each["key"] for each in term["matchExpressions"]] == ["cloud.google.com/gke-accelerator"]


def test_on_bottlerocket_the_gpus_are_asked_for_by_a_volume_mount(render: Render) -> None:
    template, container = profiler_of(render(platform("Bottlerocket")))
    assert environment(container)["NVIDIA_VISIBLE_DEVICES"] == "/var/run/nvidia-container-devices"
    assert {"name": "all-gpus", "mountPath": "/var/run/nvidia-container-devices/all"} in container["volumeMounts"]
    assert template["spec"]["securityContext"]["seLinuxOptions"]["type"] == "super_t"
    assert template["spec"]["securityContext"]["runAsUser"] == 0
    assert "runtimeClassName" not in template["spec"]


def test_on_openshift_the_profiler_is_privileged_and_root(render: Render) -> None:
    template, container = profiler_of(render(platform("OpenShift")))
    assert container["securityContext"] == {"privileged": True, "readOnlyRootFilesystem": True}
    assert template["spec"]["securityContext"]["runAsUser"] == 0


def test_with_cdi_an_annotation_asks_for_every_gpu(render: Render) -> None:
    template, container = profiler_of(render(platform("CDI without a RuntimeClass")))
    assert template["metadata"]["annotations"] == {"cdi.k8s.io/uellm": "nvidia.com/gpu=all"}
    assert environment(container)["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert "runtimeClassName" not in template["spec"]


def test_a_profiler_is_held_to_its_own_node_unless_that_is_turned_off(render: Render) -> None:
    without_gateway = {"gateway": {"enabled": False}}
    policy, binding = of_kind(render(without_gateway), *POLICIES)
    assert binding["spec"]["policyName"] == policy["metadata"]["name"]
    assert of_kind(render({"profiler": {"ownNodeOnly": False}, **without_gateway}), *POLICIES) == []
    unlabelled, _ = of_kind(render({"profiler": {"labelNodes": False}, **without_gateway}), *POLICIES)
    assert len(unlabelled["spec"]["validations"]) == 1


def test_a_server_without_the_policy_is_not_asked_for_one(
    helm: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    for version, there in (("v1.29.9", False), ("v1.30.0", True), ("v1.31.1-eks-7f9249a", True)):
        done = helm("template", "uellm", str(CHART), "--kube-version", version)
        assert done.returncode == 0, done.stderr
        assert ("ValidatingAdmissionPolicy" in done.stdout) == there


def test_the_profiler_makes_events_where_those_of_nodes_are_kept(render: Render) -> None:
    role = named(render(), "Role", "uellm-profiler-events")
    assert role["metadata"]["namespace"] == "default"
    assert role["rules"] == [{"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]}]


def test_the_device_plugin_is_off_by_default_and_never_leaves_the_described_nodes(render: Render) -> None:
    assert [d["metadata"]["name"] for d in of_kind(render(), "DaemonSet")] == ["uellm-profiler"]
    expression = {"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-1", "node-2"]}
    objects = render(simulated=True)
    assert node_terms(objects, "uellm-device-plugin") == [{"matchExpressions": [expression]}]
    assert node_terms(objects, "uellm-profiler") == [{"matchExpressions": [expression]}]


def test_each_described_node_hands_its_gpus_out_in_one_way(render: Render) -> None:
    def names(objects: list[dict[str, Any]], daemonset: str) -> list[str]:
        [term] = node_terms(objects, daemonset)
        return list(term["matchExpressions"][0]["values"])

    dra = {"simulated": {"dra": {"enabled": True, "nodes": ["node-2"]}}}
    objects = render(dra, simulated=True)
    assert names(objects, "uellm-device-plugin") == ["node-1"]
    assert names(objects, "uellm-dra-driver") == ["node-2"]
    assert names(objects, "uellm-profiler") == ["node-1", "node-2"]
    [device_class] = of_kind(objects, "DeviceClass")
    assert device_class["metadata"]["name"] == "gpu.nvidia.com"
    assert device_class["metadata"]["labels"]["uellm.io/simulated"] == "true"

    everywhere = render({"simulated": {"dra": {"enabled": True}}}, simulated=True)
    assert names(everywhere, "uellm-dra-driver") == ["node-1", "node-2"]
    assert "uellm-device-plugin" not in [each["metadata"]["name"] for each in of_kind(everywhere, "DaemonSet")]

    assert of_kind(render(simulated=True), "DeviceClass") == []
    assert of_kind(render({"simulated": {"dra": {"enabled": True}}}), "DeviceClass") == []


def test_the_described_nodes_are_whole_profiles(render: Render) -> None:
    data = named(render(simulated=True), "ConfigMap", "uellm-simulated")["data"]
    assert sorted(data) == ["node-1.yaml", "node-2.yaml"]
    for text in data.values():
        status = yaml.safe_load(text)
        parsed = parse(GPUNodeProfileStatus, status)
        # The types ignore unknown fields, so check that no field is misspelt.
        assert parsed.model_dump(by_alias=True, exclude_unset=True, mode="json") == status


def test_the_demo_has_four_unlike_gpus_on_one_node_and_one_on_the_other() -> None:
    nodes = SIMULATED["simulated"]["nodes"]
    assert {name: len(node["devices"]) for name, node in nodes.items()} == {"node-1": 4, "node-2": 1}
    unlike = {
        (d["product"], d["memoryBytes"], d["measured"]["memoryBytesPerSecond"]) for d in nodes["node-1"]["devices"]
    }
    assert len(unlike) == 4
    pairs = {(link["a"], link["b"]) for link in nodes["node-1"]["links"]}
    assert len(pairs) == 12
