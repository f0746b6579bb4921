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

from helpers.chart import (
    CHART,
    MATRIX,
    ROOT,
    Render,
    granted,
    named,
    of_kind,
    pod_specs,
)
from uellm.api.crd import DEFINITIONS
from uellm.api.crd import render as render_crd
from uellm.controller.lease import NAME as LEASE_NAME
from uellm.controller.lease import OPERATORS
from uellm.kube.kinds import RESOURCECLAIMTEMPLATE
from uellm.reconcile.cache import CHILD_KINDS, WATCHED_KINDS
from uellm.reconcile.optional_kinds import OPTIONAL_KINDS, ROUTING_KINDS

# helm itself may have to be built first.
pytestmark = pytest.mark.timeout(600)

each_rendering = pytest.mark.parametrize("case", MATRIX)


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


def test_what_helm_prints_to_serve_a_model_can_be_pasted(helm: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    printed = helm("install", "uellm", str(CHART), "--namespace", "uellm-system", "--dry-run=client").stdout
    command = printed.partition("Serve a model:\n")[2].partition("kubectl get llmservices")[0]
    pasted = f"kubectl() {{ cat; }}\n{command}echo after"
    said = subprocess.run(["bash", "-c", pasted], capture_output=True, text=True, check=True)
    assert (said.stderr, said.stdout.endswith("\nafter\n")) == ("", True)
    assert yaml.safe_load(said.stdout.removesuffix("after\n"))["kind"] == "LLMService"
