"""The rendered chart: its files, and objects found by kind and name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "uellm"
SIMULATED = yaml.safe_load((CHART / "values-simulated.yaml").read_text())
POLICIES = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
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
"""Values by name, and whether the simulated GPUs come with them."""


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


def profiler_of(objects: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The profiler's pod template and its container."""
    template = named(objects, "DaemonSet", "uellm-profiler")["spec"]["template"]
    (container,) = template["spec"]["containers"]
    return template, container


def environment(container: dict[str, Any]) -> dict[str, Any]:
    names = [each["name"] for each in container["env"]]
    assert len(names) == len(set(names))
    return {each["name"]: each.get("value") for each in container["env"]}
