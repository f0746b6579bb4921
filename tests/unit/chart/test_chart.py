"""The chart: the objects for given values, and that they need no more rights than necessary."""

from __future__ import annotations

import json
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from uellm.api import LLMService, parse
from uellm.api.crd import DEFINITIONS
from uellm.api.crd import render as render_crd
from uellm.api.gpunodeprofile import GPUNodeProfileStatus
from uellm.api.names import SERVICE_LABEL
from uellm.controller.lease import NAME as LEASE_NAME
from uellm.controller.lease import OPERATORS
from uellm.kube.kinds import RESOURCECLAIMTEMPLATE
from uellm.pod_interface import METRICS_PORT, SIDECAR_PORT
from uellm.reconcile.cache import CHILD_KINDS, WATCHED_KINDS
from uellm.reconcile.measuring.settings import MeasuringSettings
from uellm.reconcile.optional_kinds import OPTIONAL_KINDS, ROUTING_KINDS

# helm itself may have to be built first.
pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[3]
CHART = ROOT / "charts" / "uellm"
SIMULATED = yaml.safe_load((CHART / "values-simulated.yaml").read_text())
Render = Callable[..., list[dict[str, Any]]]

MATRIX: dict[str, tuple[dict[str, Any], bool]] = {
    "defaults": ({}, False),
    "simulated": ({}, True),
    "simulated, with DRA on one node": ({"simulated": {"dra": {"enabled": True, "nodes": ["node-1"]}}}, True),
    "simulated, with DRA alone": ({"simulated": {"dra": {"enabled": True}}}, True),
    "no scheduler": ({"scheduler": {"enabled": False}}, False),
    "two schedulers": ({"scheduler": {"replicas": 2}}, False),
    "no profiler": ({"profiler": {"enabled": False}}, False),
    "device plugin alone": ({"profiler": {"enabled": False}}, True),
    "profiler in a namespace that exists": ({"profiler": {"namespace": {"name": "gpu", "create": False}}}, False),
    "every node, no runtime class": (
        {"profiler": {"nodeLabels": {"nvidia.com/gpu.present": None}, "runtimeClassName": ""}},
        False,
    ),
    "monitored": (
        {
            "monitoring": {
                "podMonitors": {"enabled": True, "labels": {"release": "prometheus"}},
                "serviceMonitors": {"enabled": True},
                "rules": {"enabled": True},
                "dashboards": {"enabled": True, "namespace": "grafana"},
            }
        },
        False,
    ),
    "models on nodes": ({"modelCache": {"path": "/mnt/models", "limit": "500Gi"}}, False),
    "nothing measured": ({"measuring": {"enabled": False}}, False),
    "the network measured": ({"profiler": {"measureNetwork": True}}, True),
    "no gateway": ({"gateway": {"enabled": False}}, False),
    "a gateway for two namespaces, with everything": (
        {
            "gateway": {
                "namespaces": ["team-a", "team-b"],
                "allowedOrigins": ["https://chat.example.com", "*"],
                "tls": {"secretName": "certificate"},
                "apiKeys": {"secretName": "keys"},
                "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
                "ingress": {"enabled": True, "host": "llm.example.com", "tlsSecretName": "c", "className": "nginx"},
                "httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}], "hostnames": ["llm.example.com"]},
                "networkPolicy": {
                    "enabled": True,
                    "from": [{"namespaceSelector": {}}],
                    "metricsFrom": [{"podSelector": {}}],
                },
            }
        },
        False,
    ),
    "a gateway alone": ({"operator": {"enabled": False}, "monitoring": {"podMonitors": {"enabled": True}}}, True),
    "no CRDs": ({"crds": {"install": False}}, False),
    "everything placed": (
        {
            "images": {"pullSecrets": ["registry"], "operator": "example.com/o:1", "kubeScheduler": "example.com/k:1"},
            "commonLabels": {"team": "ml"},
            **{
                part: {
                    "tolerations": [{"operator": "Exists"}],
                    "priorityClassName": "system-cluster-critical",
                    "podAnnotations": {"a": "b"},
                    **({} if part == "profiler" else {"nodeSelector": {"a": "b"}, "affinity": {"podAntiAffinity": {}}}),
                }
                for part in ("operator", "scheduler", "profiler", "gateway")
            },
        },
        True,
    ),
}
each_rendering = pytest.mark.parametrize("case", MATRIX)


def of_kind(objects: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [obj for obj in objects if obj["kind"] in kinds]


def named(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = (obj for obj in of_kind(objects, kind) if obj["metadata"]["name"] == name)
    return found


def pod_specs(objects: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for workload in of_kind(objects, "Deployment", "DaemonSet"):
        yield workload, workload["spec"]["template"]["spec"]


def granted(objects: list[dict[str, Any]], role: str) -> set[tuple[str, str, str]]:
    rules = named(objects, "ClusterRole", role)["rules"]
    return {(g, r, v) for rule in rules for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]}


@pytest.mark.parametrize("values", [[], ["--values", str(CHART / "values-simulated.yaml")]])
def test_helm_finds_nothing_to_complain_about(
    helm: Callable[..., subprocess.CompletedProcess[str]], values: list[str]
) -> None:
    done = helm("lint", "--strict", str(CHART), *values)
    assert done.returncode == 0, done.stdout + done.stderr


@each_rendering
def test_roles_name_every_verb_and_resource_and_no_secret(render: Render, case: str) -> None:
    values, simulated = MATRIX[case]
    for role in of_kind(render(values, simulated=simulated), "Role", "ClusterRole"):
        for rule in role["rules"]:
            words = [*rule.get("apiGroups", ()), *rule.get("resources", ()), *rule["verbs"]]
            assert "*" not in words
            assert "secrets" not in words
            assert not {"escalate", "bind", "impersonate"} & set(words)


@each_rendering
def test_all_but_the_profilers_namespace_passes_pod_security_restricted(render: Render, case: str) -> None:
    values, simulated = MATRIX[case]
    for workload, pod in pod_specs(render(values, simulated=simulated)):
        own_namespace = workload["metadata"]["namespace"] != "uellm-system"
        assert own_namespace == (workload["kind"] == "DaemonSet")
        assert pod["securityContext"]["runAsNonRoot"] is not own_namespace
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert own_namespace or all("hostPath" not in volume for volume in pod.get("volumes", ()))
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}


@each_rendering
def test_every_container_has_a_pinned_image_and_its_resources(render: Render, case: str) -> None:
    values, simulated = MATRIX[case]
    for _, pod in pod_specs(render(values, simulated=simulated)):
        for container in pod["containers"]:
            assert ":" in container["image"].rsplit("/", 1)[-1]
            assert not container["image"].endswith(":latest")
            assert set(container["resources"]["requests"]) == {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]


@each_rendering
def test_every_account_and_namespace_that_is_named_is_there(render: Render, case: str) -> None:
    values, simulated = MATRIX[case]
    objects = render(values, simulated=simulated)
    accounts = {(a["metadata"]["namespace"], a["metadata"]["name"]) for a in of_kind(objects, "ServiceAccount")}
    for binding in of_kind(objects, "RoleBinding", "ClusterRoleBinding"):
        for subject in binding["subjects"]:
            assert (subject["namespace"], subject["name"]) in accounts
    for workload, pod in pod_specs(objects):
        if pod.get("automountServiceAccountToken", True):
            assert (workload["metadata"]["namespace"], pod["serviceAccountName"]) in accounts
    maps = {(m["metadata"]["namespace"], m["metadata"]["name"]) for m in of_kind(objects, "ConfigMap")}
    for workload, pod in pod_specs(objects):
        for volume in pod.get("volumes", ()):
            if "configMap" in volume:
                assert (workload["metadata"]["namespace"], volume["configMap"]["name"]) in maps


def test_the_operator_may_do_what_it_does_to_the_kinds_that_it_knows(render: Render) -> None:
    may = granted(render(), "uellm-operator")
    for kind in (*WATCHED_KINDS, *OPTIONAL_KINDS):
        group = kind.api_version.rpartition("/")[0]
        assert {(group, kind.plural, verb) for verb in ("get", "list", "watch")} <= may
    for kind in (*CHILD_KINDS, *ROUTING_KINDS, RESOURCECLAIMTEMPLATE):
        group = kind.api_version.rpartition("/")[0]
        assert {(group, kind.plural, verb) for verb in ("create", "patch", "delete")} <= may
    # Claims are made and deleted by Kubernetes alone.
    assert ("resource.k8s.io", "resourceclaims", "delete") not in may
    assert ("uellm.io", "llmservices/status", "patch") in may
    assert ("uellm.io", "llmservices", "patch") not in may


def test_node_classes_are_remembered_only_where_that_is_asked_for(render: Render) -> None:
    def of_operator(objects: list[dict[str, Any]]) -> tuple[bool, bool]:
        [container] = named(objects, "Deployment", "uellm-operator")["spec"]["template"]["spec"]["containers"]
        may_create = ("uellm.io", "gpunodeclasses", "create") in granted(objects, "uellm-operator")
        return "--remember-node-classes" in container["args"], may_create

    assert of_operator(render()) == (False, False)
    assert of_operator(render({"operator": {"rememberNodeClasses": True}})) == (True, True)


def test_a_second_operator_stands_by_on_another_node_and_a_drain_takes_one_at_a_time(render: Render) -> None:
    objects = render()
    spec = named(objects, "Deployment", "uellm-operator")["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    (spread,) = spec["template"]["spec"]["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    budget = named(objects, "PodDisruptionBudget", "uellm-operator")["spec"]
    assert budget == {"maxUnavailable": 1, "selector": spec["selector"]}


def test_a_single_replica_has_no_disruption_budget(render: Render) -> None:
    objects = render({"operator": {"replicas": 1}, "gateway": {"replicas": 1}})
    assert not any(each["kind"] == "PodDisruptionBudget" for each in objects)


def test_the_engine_image_is_upstreams_by_default(render: Render) -> None:
    def images(objects: list[dict[str, Any]]) -> dict[str, str]:
        (container,) = named(objects, "Deployment", "uellm-operator")["spec"]["template"]["spec"]["containers"]
        return {entry["name"]: entry["value"] for entry in container["env"] if entry["name"].endswith("_IMAGE")}

    assert images(render()) == {
        "UELLM_ENGINE_IMAGE": "vllm/vllm-openai:v0.32.0",
        "UELLM_SIDECAR_IMAGE": "registry.uellm.io/sidecar:0.1.0",
        "UELLM_LAUNCHER_IMAGE": "registry.uellm.io/launcher:0.1.0",
        "UELLM_INSPECTOR_IMAGE": "registry.uellm.io/operator:0.1.0",
    }
    assert images(render(simulated=True))["UELLM_ENGINE_IMAGE"] == "uellm.local/engine-cpu:dev"


def scheduler_configuration(objects: list[dict[str, Any]]) -> dict[str, Any]:
    text = named(objects, "ConfigMap", "uellm-scheduler")["data"]["scheduler.yaml"]
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def test_the_scheduler_has_the_name_that_services_ask_for_and_an_extender_that_it_cannot_pass(render: Render) -> None:
    configuration = scheduler_configuration(render())
    spec = {"model": {"uri": "hf://a/b"}}
    service = LLMService.model_validate({"metadata": {"name": "a"}, "spec": spec})
    assert [p["schedulerName"] for p in configuration["profiles"]] == [service.spec.placement.scheduler_name]
    (extender,) = configuration["extenders"]
    assert extender["urlPrefix"] == "http://127.0.0.1:8888/"
    assert extender["ignorable"] is False
    assert extender["nodeCacheCapable"] is True
    assert extender["managedResources"] == [{"name": "nvidia.com/gpu", "ignoredByScheduler": False}]
    assert configuration["percentageOfNodesToScore"] == 100


def test_several_schedulers_elect_a_leader(render: Render) -> None:
    alone, several = render(), render({"scheduler": {"replicas": 2}})
    assert scheduler_configuration(alone)["leaderElection"]["leaderElect"] is False
    assert named(alone, "Deployment", "uellm-scheduler")["spec"]["strategy"] == {"type": "Recreate"}
    assert scheduler_configuration(several)["leaderElection"]["leaderElect"] is True
    assert "strategy" not in named(several, "Deployment", "uellm-scheduler")["spec"]


def test_a_changed_configuration_restarts_the_scheduler(render: Render) -> None:
    def digest(objects: list[dict[str, Any]]) -> str:
        template = named(objects, "Deployment", "uellm-scheduler")["spec"]["template"]
        return str(template["metadata"]["annotations"]["uellm.io/configuration"])

    assert digest(render()) != digest(render({"scheduler": {"extenderWeight": 1}}))


def test_kube_scheduler_is_of_the_clusters_own_version(render: Render) -> None:
    pod = named(render(), "Deployment", "uellm-scheduler")["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "registry.k8s.io/kube-scheduler:v1.34.2"


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


def profiler_of(objects: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The profiler's pod template and its container."""
    template = named(objects, "DaemonSet", "uellm-profiler")["spec"]["template"]
    (container,) = template["spec"]["containers"]
    return template, container


def environment(container: dict[str, Any]) -> dict[str, Any]:
    names = [each["name"] for each in container["env"]]
    assert len(names) == len(set(names))
    return {each["name"]: each.get("value") for each in container["env"]}


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


POLICIES = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")


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


def test_a_version_that_names_no_image_of_the_scheduler_is_refused(
    helm: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    own = ("--set", "images.kubeScheduler=example.com/k:1")
    for version in ("1.31", "v1.31"):
        done = helm("template", "uellm", str(CHART), "--kube-version", version)
        assert done.returncode != 0
        assert "the cluster's version is v1.31, which names no image" in done.stderr
        assert "set images.kubeScheduler" in done.stderr
        done = helm("template", "uellm", str(CHART), "--kube-version", version, *own)
        assert done.returncode == 0, done.stderr
    done = helm("template", "uellm", str(CHART), "--kube-version", "v1.31", "--set", "scheduler.enabled=false")
    assert done.returncode == 0, done.stderr


def test_the_values_for_argo_cd_render_for_the_minor_version_that_it_tells_helm(
    helm: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    guide = (ROOT / "docs" / "how-to" / "gitops.md").read_text()
    application = yaml.safe_load(guide.split("```yaml\n", 1)[1].split("```", 1)[0])
    file = tmp_path / "values.yaml"
    values = application["spec"]["source"]["helm"]["valuesObject"]
    values["images"]["registry"] = "registry.example.com"
    file.write_text(yaml.safe_dump(values))
    done = helm("template", "uellm", str(CHART), "--kube-version", "v1.34", "--values", str(file))
    assert done.returncode == 0, done.stderr


def test_simulated_gpus_need_nodes(helm: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = helm("template", "uellm", str(CHART), "--kube-version", "v1.34.2", "--set", "simulated.enabled=true")
    assert done.returncode != 0
    assert "simulated.enabled needs at least one node in simulated.nodes" in done.stderr


def test_who_may_plan_reads_what_the_command_lists_and_changes_nothing(render: Render) -> None:
    kinds = {
        *(("uellm.io", each) for each in ("gpunodeprofiles", "gpunodeclasses", "llmservices")),
        *(("", each) for each in ("nodes", "pods")),
        *(("resource.k8s.io", each) for each in ("deviceclasses", "resourceslices", "resourceclaims")),
    }
    assert granted(render(), "uellm-plan") == {(*kind, verb) for kind in kinds for verb in ("get", "list")}
    assert not any("aggregate" in label for label in named(render(), "ClusterRole", "uellm-plan")["metadata"]["labels"])


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


def test_crds_are_installed_and_kept_by_default(render: Render) -> None:
    crds = of_kind(render(), "CustomResourceDefinition")
    assert sorted(c["metadata"]["name"] for c in crds) == [
        "gpunodeclasses.uellm.io",
        "gpunodeprofiles.uellm.io",
        "llmservices.uellm.io",
    ]
    assert all(c["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"} for c in crds)
    specs = {c["metadata"]["name"]: c["spec"] for c in crds}
    assert specs == {d["metadata"]["name"]: d["spec"] for d in map(render_crd, DEFINITIONS)}
    assert of_kind(render({"crds": {"install": False}}), "CustomResourceDefinition") == []
    unkept = of_kind(render({"crds": {"keep": False}}), "CustomResourceDefinition")
    assert all("annotations" not in c["metadata"] for c in unkept)


def test_an_upgrade_touches_nothing_but_the_charts_own_objects(render: Render) -> None:
    def identities(objects: list[dict[str, Any]]) -> set[tuple[str, str]]:
        return {(obj["kind"], obj["metadata"]["name"]) for obj in objects}

    old, new = render(), render({"images": {"tag": "9.9.9", "engine": "vllm/vllm-openai:v9"}})
    assert identities(old) == identities(new)
    assert not {kind for kind, _ in identities(new)} & {"LLMService", "GPUNodeProfile", "Job", "Pod"}
    selectors = [w["spec"]["selector"]["matchLabels"] for w, _ in pod_specs(new)]
    assert all("uellm.io/service" not in selector for selector in selectors)


def test_selectors_do_not_change_with_the_version(render: Render) -> None:
    for workload, _ in pod_specs(render(simulated=True)):
        assert set(workload["spec"]["selector"]["matchLabels"]) == {
            "app.kubernetes.io/name",
            "app.kubernetes.io/instance",
        }


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"operater": {}}, "operater"),
        ({"images": {"registy": "x.io/a"}}, "registy"),
        ({"scheduler": {"replicas": 0}}, "replicas"),
        ({"scheduler": {"replicas": "two"}}, "replicas"),
        ({"scheduler": {"managedResources": ["gpu"]}}, "managedResources"),
        ({"profiler": {"intervalSeconds": 0}}, "intervalSeconds"),
        ({"profiler": {"kubeletDirectory": "var/lib/kubelet"}}, "kubeletDirectory"),
        ({"images": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"images": {"engine": ""}}, "engine"),
        ({"operator": {"resources": {"request": {}}}}, "request"),
        ({"simulated": {"nodes": {"Node_1": {"devices": []}}}}, "Node_1"),
        ({"operator": {"tolerations": [{"keys": "a"}]}}, "keys"),
        ({"simulated": {"enabled": True, "dra": {"enabled": True, "nodes": ["node-9"]}}}, "node-9 is not among"),
        ({"gateway": {"replicas": 0}}, "replicas"),
        ({"operator": {"enabled": False}, "gateway": {"enabled": False}}, "nothing is left to install"),
        ({"operator": {"gatewayNamespaces": ["Team_A"]}}, "gatewayNamespaces"),
        ({"gateway": {"namespaces": ["Team_A"]}}, "namespaces"),
        ({"gateway": {"allowedOrigins": ["https://chat.example.com/"]}}, "allowedOrigins"),
        ({"gateway": {"httpRoute": {"enabled": True}}}, "parentRefs"),
    ],
)
def test_a_value_that_means_nothing_is_refused_by_name(
    helm: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, values: dict[str, Any], says: str
) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    done = helm("template", "uellm", str(CHART), "--values", str(file))
    assert done.returncode != 0
    assert says in done.stderr


def test_the_schema_and_the_values_name_the_same(render: Render) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    # `global` is helm's own.
    del schema["properties"]["global"]

    def in_schema(node: dict[str, Any], path: str = "") -> Iterator[str]:
        for name, child in node.get("properties", {}).items():
            yield f"{path}.{name}"
            yield from in_schema(child, f"{path}.{name}")

    whole = {"resources", "extenderResources", "nodeLabels", "labels", "podSecurityContext", "securityContext"}

    def in_values(node: dict[str, Any], path: str = "") -> Iterator[str]:
        for name, child in node.items():
            yield f"{path}.{name}"
            if isinstance(child, dict) and name not in whole:
                yield from in_values(child, f"{path}.{name}")

    assert set(in_values(values)) == set(in_schema(schema))


def test_every_value_is_described() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    described = False
    for line in lines:
        text = line.strip()
        if text.startswith("#"):
            described = True
        elif not text:
            described = False
        else:
            # Adjacent values share the comment above them.
            assert described, f"no comment above {text!r}"


def test_the_chart_has_the_packages_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (chart["version"], chart["appVersion"]) == (package, package)


def measuring_settings(objects: list[dict[str, Any]]) -> MeasuringSettings | None:
    """What the operator reads."""
    (container,) = named(objects, "Deployment", "uellm-operator")["spec"]["template"]["spec"]["containers"]
    text = environment(container).get("UELLM_MEASURING")
    return text and MeasuringSettings.from_json(text, source="", image="engine:1", launcher_image="launcher:1")


def test_pods_that_measure_have_a_priority_below_all_others_and_preempt_nobody(render: Render) -> None:
    objects = render()
    priority = named(objects, "PriorityClass", "uellm-measuring")
    assert priority["value"] < 0
    assert priority["preemptionPolicy"] == "Never"
    assert priority["globalDefault"] is False
    settings = measuring_settings(objects)
    assert settings is not None
    assert (settings.priority_class, settings.namespace) == ("uellm-measuring", "uellm-system-profiler")
    assert (settings.image, settings.launcher_image) == ("engine:1", "launcher:1")


def test_another_priority_is_another_class_because_the_value_of_a_class_cannot_be_changed(render: Render) -> None:
    for value, name in (
        (-1000, "uellm-measuring"),
        (-500, "uellm-measuring-500"),
        (-2_000_000, "uellm-measuring-2000000"),
    ):
        objects = render({"measuring": {"priority": value}})
        (priority,) = of_kind(objects, "PriorityClass")
        assert (priority["metadata"]["name"], priority["value"]) == (name, value)
        settings = measuring_settings(objects)
        assert settings is not None
        assert settings.priority_class == name


def test_the_profiler_reads_the_directory_of_the_node_into_which_they_write(render: Render) -> None:
    objects = render({"measuring": {"directory": "/opt/measured"}})
    settings = measuring_settings(objects)
    assert settings is not None
    assert settings.directory == "/opt/measured"
    template, container = profiler_of(objects)
    assert {"name": "measurements", "hostPath": {"path": "/opt/measured", "type": "DirectoryOrCreate"}} in template[
        "spec"
    ]["volumes"]
    (mount,) = (each for each in container["volumeMounts"] if each["name"] == "measurements")
    assert mount["readOnly"] is True
    assert f"--measurements={mount['mountPath']}" in container["args"]
    assert f"--measuring-namespace={settings.namespace}" in container["args"]


def test_the_profilers_pod_makes_the_directory_of_the_node_that_engines_keep_models_in(render: Render) -> None:
    objects = render({"modelCache": {"path": "/mnt/models", "limit": "500Gi"}})
    spec = profiler_of(objects)[0]["spec"]
    assert {"name": "models", "hostPath": {"path": "/mnt/models", "type": "DirectoryOrCreate"}} in spec["volumes"]
    (container,) = spec["initContainers"]
    assert container["volumeMounts"] == [{"name": "models", "mountPath": "/models"}]
    assert container["command"][-1] == "500Gi"
    (operator,) = (each for each in of_kind(objects, "Deployment") if each["metadata"]["name"] == "uellm-operator")
    args = operator["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--node-cache=/mnt/models" in args
    assert "initContainers" not in profiler_of(render())[0]["spec"]


@pytest.mark.parametrize(
    ("gateway", "others", "told"),
    [
        ({}, [], None),
        ({}, ["team-c"], None),
        ({"enabled": False}, [], ""),
        ({"enabled": False}, ["team-c"], "team-c"),
        ({"enabled": False, "namespaces": ["team-a"]}, [], ""),
        ({"namespaces": ["team-a", "team-b"]}, [], "team-a,team-b"),
        ({"namespaces": ["team-a", "team-b"]}, ["team-b", "team-c"], "team-a,team-b,team-c"),
    ],
)
def test_the_operator_knows_whose_services_a_gateway_wakes(
    render: Render, gateway: dict[str, Any], others: list[str], told: str | None
) -> None:
    objects = of_kind(render({"gateway": gateway, "operator": {"gatewayNamespaces": others}}), "Deployment")
    (operator,) = (each for each in objects if each["metadata"]["name"] == "uellm-operator")
    args = operator["spec"]["template"]["spec"]["containers"][0]["args"]
    found = [each.partition("=")[2] for each in args if each.startswith("--gateway-namespaces")]
    assert found == ([] if told is None else [told])


@pytest.mark.parametrize(("others", "mode"), [((), 0o1777), (("notes.txt",), 0o755)], ids=["empty", "holds others"])
def test_only_an_empty_directory_is_opened_to_all_whenever_the_profiler_starts(
    render: Render, tmp_path: Path, others: tuple[str, ...], mode: int
) -> None:
    (container,) = profiler_of(render({"modelCache": {"path": "/mnt/models", "limit": "500Gi"}}))[0]["spec"][
        "initContainers"
    ]
    place = tmp_path / "models"
    place.mkdir(mode=0o755)
    for name in others:
        (place / name).touch()
    program, option, script, limit = container["command"]
    for start in range(3):
        subprocess.run([program, option, script.replace("/models", str(place)), limit], check=True)
        assert (place.stat().st_mode & 0o7777, start) == (mode, start)
    assert (place / ".limit").read_text() == "500Gi"
    place.chmod(0o750)  # by an administrator
    subprocess.run([program, option, script.replace("/models", str(place)), limit], check=True)
    assert place.stat().st_mode & 0o7777 == 0o750


def test_profilers_measure_the_network_only_where_that_is_asked_for_and_for_each_other_alone(render: Render) -> None:
    plain, measuring = render(), render({"profiler": {"measureNetwork": True}})
    assert not of_kind(plain, "NetworkPolicy")
    assert not any("network" in each for each in profiler_of(plain)[1]["args"])
    args = profiler_of(measuring)[1]["args"]
    labels = named(measuring, "DaemonSet", "uellm-profiler")["spec"]["template"]["metadata"]["labels"]
    (peers,) = (each.partition("/")[2] for each in args if each.startswith("--network-peers=uellm-system-profiler/"))
    assert dict(each.split("=") for each in peers.split(",")).items() <= labels.items()
    assert "--network-listen=:8009" in args
    spec = named(measuring, "NetworkPolicy", "uellm-profiler")["spec"]
    assert spec["podSelector"]["matchLabels"].items() <= labels.items()
    assert spec["policyTypes"] == ["Ingress"]
    assert spec["ingress"] == [
        {"ports": [{"port": 8004}]},
        {"ports": [{"port": 8009}], "from": [{"podSelector": spec["podSelector"]}]},
    ]
    assert granted(plain, "uellm-profiler") == granted(measuring, "uellm-profiler")


@pytest.mark.parametrize("values", [{"measuring": {"enabled": False}}, {"profiler": {"enabled": False}}])
def test_where_nobody_measures_nothing_of_it_is_there(render: Render, values: dict[str, Any]) -> None:
    objects = render(values)
    assert measuring_settings(objects) is None
    assert of_kind(objects, "PriorityClass") == []


def test_the_gateway_reads_services_and_endpoints_and_may_patch_services_alone(render: Render) -> None:
    assert granted(render(), "uellm-gateway") == {
        *(("uellm.io", "llmservices", verb) for verb in ("get", "list", "watch", "patch")),
        *(("discovery.k8s.io", "endpointslices", verb) for verb in ("get", "list", "watch")),
    }
    (binding,) = (b for b in of_kind(render(), "ClusterRoleBinding") if b["metadata"]["name"] == "uellm-gateway")
    assert binding["subjects"][0]["name"] == "uellm-gateway"


def test_a_gateway_of_some_namespaces_has_rights_there_alone(render: Render) -> None:
    objects = render(MATRIX["a gateway for two namespaces, with everything"][0])
    bindings = [b for b in of_kind(objects, "RoleBinding") if b["metadata"]["name"] == "uellm-gateway"]
    assert [b["metadata"]["namespace"] for b in bindings] == ["team-a", "team-b"]
    assert not [b for b in of_kind(objects, "ClusterRoleBinding") if b["metadata"]["name"] == "uellm-gateway"]
    args = named(objects, "Deployment", "uellm-gateway")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert {"--namespace=team-a", "--namespace=team-b"} <= set(args)
    assert [arg for arg in args if "origin" in arg] == [
        "--allowed-origins=https://chat.example.com",
        "--allowed-origins=*",
    ]


def test_a_release_without_the_operator_is_a_gateway_and_nothing_else(render: Render) -> None:
    values, simulated = MATRIX["a gateway alone"]
    objects = render(values, simulated=simulated)
    assert {obj["metadata"]["labels"]["app.kubernetes.io/name"] for obj in objects} == {"uellm-gateway"}
    assert [pod["metadata"]["name"] for pod, _ in pod_specs(objects)] == ["uellm-gateway"]
    (monitor,) = of_kind(objects, "PodMonitor")
    assert monitor["metadata"]["name"] == "uellm-gateway"


def test_an_upgrade_with_the_values_of_a_release_that_had_no_such_key_keeps_the_operator(render: Render) -> None:
    kept = render({"operator": {"enabled": None, "gatewayNamespaces": None}})
    assert kept == render()


def test_the_operator_may_see_whether_that_of_another_release_works(render: Render) -> None:
    rules = named(render(), "ClusterRole", "uellm-operator")["rules"]
    (leases,) = (rule for rule in rules if "leases" in rule["resources"])
    assert (leases["resourceNames"], leases["verbs"]) == ([LEASE_NAME], ["list"])
    (bindings,) = (rule for rule in rules if "clusterrolebindings" in rule["resources"])
    assert bindings["verbs"] == ["list"]


def test_the_operator_is_known_by_its_binding_and_no_other_part_of_the_release_is(render: Render) -> None:
    label, _, value = OPERATORS.partition("=")
    bindings = of_kind(render(), "ClusterRoleBinding")
    (found,) = (each for each in bindings if each["metadata"]["labels"][label] == value)
    assert found["roleRef"]["name"] == "uellm-operator"
    assert [(each["kind"], each["namespace"]) for each in found["subjects"]] == [("ServiceAccount", "uellm-system")]


def test_two_gateways_serve_behind_one_service_and_stop_one_at_a_time(render: Render) -> None:
    objects = render()
    deployment = named(objects, "Deployment", "uellm-gateway")
    pod = deployment["spec"]["template"]["spec"]
    assert deployment["spec"]["replicas"] == 2
    assert named(objects, "PodDisruptionBudget", "uellm-gateway")["spec"]["maxUnavailable"] == 1
    (port,) = named(objects, "Service", "uellm-gateway")["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (80, "api")
    drain_s = next(int(a.partition("=")[2]) for a in pod["containers"][0]["args"] if a.startswith("--drain-seconds"))
    assert pod["terminationGracePeriodSeconds"] > drain_s


def test_with_a_certificate_the_gateway_speaks_https(render: Render) -> None:
    objects = render({"gateway": {"tls": {"secretName": "certificate"}}})
    pod = named(objects, "Deployment", "uellm-gateway")["spec"]["template"]["spec"]
    assert "--tls=/etc/uellm-tls" in pod["containers"][0]["args"]
    assert pod["volumes"] == [{"name": "tls", "secret": {"secretName": "certificate", "defaultMode": 0o440}}]
    (port,) = named(objects, "Service", "uellm-gateway")["spec"]["ports"]
    assert (port["port"], port["appProtocol"]) == (443, "https")


def test_a_route_or_an_ingress_leads_to_the_gateway_where_that_is_asked_for(render: Render) -> None:
    assert not of_kind(render(), "Ingress", "HTTPRoute")
    objects = render({"gateway": {"ingress": {"enabled": True}}})
    (rule,) = named(objects, "Ingress", "uellm-gateway")["spec"]["rules"]
    assert rule["http"]["paths"][0]["backend"]["service"] == {"name": "uellm-gateway", "port": {"number": 80}}
    route = {"enabled": True, "parentRefs": [{"name": "public", "namespace": "infra"}]}
    spec = named(render({"gateway": {"httpRoute": route}}), "HTTPRoute", "uellm-gateway")["spec"]
    (parent,) = spec["parentRefs"]
    assert (parent["name"], parent["namespace"]) == ("public", "infra")
    (backend,) = spec["rules"][0]["backendRefs"]
    assert (backend["kind"], backend["name"], backend["port"]) == ("Service", "uellm-gateway", 80)


def test_what_the_server_would_add_inside_of_lists_is_written_out_so_that_gitops_tools_see_no_difference(
    render: Render,
) -> None:
    """The defaults of the Gateway API's and the Prometheus operator's CRDs, in lists without keys."""
    other = {"name": "mesh", "kind": "Service", "group": ""}
    route = {"enabled": True, "parentRefs": [{"name": "public"}, other]}
    monitoring = {"podMonitors": {"enabled": True}, "serviceMonitors": {"enabled": True}}
    objects = render({"gateway": {"httpRoute": route}, "monitoring": monitoring})
    spec = named(objects, "HTTPRoute", "uellm-gateway")["spec"]
    gateway = {"group": "gateway.networking.k8s.io", "kind": "Gateway"}
    assert spec["parentRefs"] == [{**gateway, "name": "public"}, other]
    for rule in spec["rules"]:
        assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/"}}]
        for backend in rule["backendRefs"]:
            assert {"group": "", "kind": "Service", "weight": 1}.items() <= backend.items()
    monitors = of_kind(objects, "PodMonitor", "ServiceMonitor")
    endpoints = [e for m in monitors for e in m["spec"].get("podMetricsEndpoints") or m["spec"]["endpoints"]]
    relabelings = [each for endpoint in endpoints for each in endpoint.get("relabelings", ())]
    assert relabelings
    assert all("action" in each for each in relabelings)


def test_a_network_policy_says_who_reaches_the_gateway_and_whom_it_reaches(render: Render) -> None:
    assert not of_kind(render(), "NetworkPolicy")
    objects = render({"gateway": {"networkPolicy": {"enabled": True, "apiServerPorts": [16443]}}})
    spec = named(objects, "NetworkPolicy", "uellm-gateway")["spec"]
    pod = named(objects, "Deployment", "uellm-gateway")["spec"]["template"]
    assert spec["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["ingress"] == [{"ports": [{"port": "api"}]}, {"ports": [{"port": "metrics"}]}]
    api_server, sidecars = spec["egress"]
    assert api_server == {"ports": [{"port": 16443}]}
    assert sidecars["ports"] == [{"port": SIDECAR_PORT}, {"port": METRICS_PORT}]
    (pods,) = sidecars["to"]
    assert pods["podSelector"]["matchExpressions"] == [{"key": SERVICE_LABEL, "operator": "Exists"}]
    assert pods["namespaceSelector"] == {}


def test_the_network_policy_of_a_gateway_of_some_namespaces_leads_there_alone(render: Render) -> None:
    clients = [{"namespaceSelector": {"matchLabels": {"llm": "yes"}}}]
    policy = {"enabled": True, "from": clients, "metricsFrom": [{"podSelector": {}}]}
    objects = render({"gateway": {"namespaces": ["team-a", "team-b"], "networkPolicy": policy}})
    spec = named(objects, "NetworkPolicy", "uellm-gateway")["spec"]
    assert [rule["from"] for rule in spec["ingress"]] == [clients, [{"podSelector": {}}]]
    (pods,) = spec["egress"][1]["to"]
    (expression,) = pods["namespaceSelector"]["matchExpressions"]
    assert expression == {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["team-a", "team-b"]}


def test_a_gateway_is_held_to_its_annotation_unless_that_is_turned_off(render: Render) -> None:
    def policies(values: dict[str, Any]) -> list[str]:
        found = of_kind(render(values), "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
        return [obj["kind"] for obj in found if "gateway" in obj["metadata"]["name"]]

    assert policies({}) == ["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"]
    assert policies({"gateway": {"ownAnnotationOnly": False}}) == []
