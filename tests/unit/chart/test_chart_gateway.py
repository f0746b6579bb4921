"""The gateway of the chart: what it may do, and how it is reached."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.chart import (
    MATRIX,
    Render,
    granted,
    named,
    of_kind,
    pod_specs,
)
from uellm.api.names import SERVICE_LABEL
from uellm.pod_interface import METRICS_PORT, SIDECAR_PORT

# helm itself may have to be built first.
pytestmark = pytest.mark.timeout(600)


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


def test_the_host_of_an_ingress_may_be_a_wildcard(render: Render) -> None:
    ingress = {"enabled": True, "host": "*.example.com", "tlsSecretName": "tls"}
    spec = named(render({"gateway": {"ingress": ingress}}), "Ingress", "uellm-gateway")["spec"]
    assert (spec["rules"][0]["host"], spec["tls"][0]["hosts"]) == ("*.example.com", ["*.example.com"])
