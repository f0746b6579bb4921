"""The CRDs on a real API server: validation, defaults, printer columns and scaling."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.documents import CASES, VALID_SERVICE, changed_service
from uellm.api import parse_service
from uellm.api.crd import DEFINITIONS, render
from uellm.kube import GPUNODEPROFILE, LLMSERVICE, Invalid, Kube, KubeError
from uellm_devcluster.binaries import ensure

ROOT = Path(__file__).parents[2]


def kubectl(kubeconfig: str, *args: str) -> str:
    command = [str(ensure({"kubectl"}) / "kubectl"), "--kubeconfig", kubeconfig, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def service(namespace: str, case: dict[str, Any] | None = None) -> dict[str, Any]:
    document = changed_service(case or {})
    document["metadata"]["namespace"] = namespace
    return document


async def test_the_server_accepts_and_refuses_what_the_types_do_and_names_the_field(kube: Kube, namespace: str) -> None:
    differing = {}
    for case in CASES:
        document = service(namespace, case)
        try:
            await kube.create(document)
            answer = ""
            await kube.delete(LLMSERVICE, document["metadata"]["name"], namespace)
        except KubeError as error:
            answer = str(error)
        if case.get("field", "") not in answer or ("field" in case) != bool(answer):
            differing[case["name"]] = answer
    assert differing == {}


async def test_the_server_fills_in_the_defaults_of_the_types(kube: Kube, namespace: str) -> None:
    created = await kube.create(service(namespace))
    written = {key: created[key] for key in ("apiVersion", "kind", "metadata", "spec")}
    assert parse_service(written).spec == parse_service(VALID_SERVICE).spec
    assert created["spec"]["replicas"] == 1
    assert created["spec"]["placement"]["gpus"] == {"min": 1}


async def test_an_update_is_held_to_the_same_rules(kube: Kube, namespace: str) -> None:
    await kube.create(service(namespace))
    worse = service(namespace, {"set": {"spec.placement": {"gpus": {"min": 2, "max": 1}}}})
    with pytest.raises(Invalid, match=r"spec\.placement\.gpus\.min"):
        await kube.apply(worse, manager="test")


async def test_a_number_that_leaves_the_manifest_falls_back_to_one_unless_somebody_else_owns_it(
    kube: Kube, namespace: str
) -> None:
    manifest = service(namespace, {"set": {"spec.replicas": 5}})
    await kube.apply(manifest, manager="git")
    handover = {key: manifest[key] for key in ("apiVersion", "kind", "metadata")} | {"spec": {"replicas": 5}}
    await kube.apply(handover, manager="handover")
    del manifest["spec"]["replicas"]
    assert (await kube.apply(manifest, manager="git"))["spec"]["replicas"] == 5
    del handover["spec"]
    assert (await kube.apply(handover, manager="handover"))["spec"]["replicas"] == 1


async def test_a_number_that_leaves_the_last_applied_manifest_first_stays(
    kube: Kube, namespace: str, kubeconfig: str, tmp_path: Path
) -> None:
    file = tmp_path / "service.json"
    manifest = service(namespace, {"set": {"spec.replicas": 5}})
    file.write_text(json.dumps(manifest))
    kubectl(kubeconfig, "apply", "-f", str(file))
    del manifest["spec"]["replicas"]
    file.write_text(json.dumps(manifest))
    kubectl(kubeconfig, "apply", "set-last-applied", "-f", str(file))
    kubectl(kubeconfig, "apply", "-f", str(file))
    found = await kube.get(LLMSERVICE, manifest["metadata"]["name"], namespace)
    assert found is not None
    assert found["spec"]["replicas"] == 5


async def test_a_template_and_a_config_keep_what_the_schema_does_not_know(kube: Kube, namespace: str) -> None:
    template = {"spec": {"containers": [{"name": "engine", "livenessProbe": None}], "anything": {"a": 1.5}}}
    config = {"rope_scaling": None, "rope_theta": 1.5, "architectures": ["LlamaForCausalLM"]}
    created = await kube.create(service(namespace, {"set": {"spec.template": template, "spec.model.config": config}}))
    assert created["spec"]["template"] == template
    assert created["spec"]["model"]["config"] == config


async def test_kubectl_prints_the_summary(kube: Kube, namespace: str, kubeconfig: str) -> None:
    await kube.create(service(namespace))
    condition = {
        "type": "Ready",
        "status": "False",
        "reason": "EngineStarting",
        "message": "the engine loads the model",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    summary = {"gpus": "2 = tp1 x pp2", "layers": "5,3", "nodes": "node-1", "slo": "99.2%", "ready": "0/1"}
    status = {"summary": summary, "conditions": [condition]}
    await kube.apply_status({**service(namespace), "status": status}, manager="test")
    header, line = kubectl(kubeconfig, "get", "llm", "-n", namespace).splitlines()
    assert header.split() == ["NAME", "MODEL", "GPUS", "LAYERS", "NODES", "SLO", "READY", "STATUS", "AGE"]
    assert line.split("   ")[0] == "llama"
    for value in (*summary.values(), "EngineStarting"):
        assert value in line


async def test_kubectl_scales(kube: Kube, namespace: str, kubeconfig: str) -> None:
    await kube.create(service(namespace))
    kubectl(kubeconfig, "scale", "llmservice/llama", "--replicas=2", "-n", namespace)
    scaled = await kube.get(LLMSERVICE, "llama", namespace)
    assert scaled is not None
    assert scaled["spec"]["replicas"] == 2


def test_kubectl_explains_every_field(kubeconfig: str) -> None:
    text = kubectl(kubeconfig, "explain", "llmservice.spec.placement.gpus")
    assert "Fewest GPUs of a replica" in text


async def test_a_profile_is_named_as_its_node_and_printed_by_its_short_name(
    kubeconfig: str, apply_profile: Callable[..., Awaitable[None]], kube: Kube
) -> None:
    await apply_profile("node-1.example.com", [2**31, 2**30])
    line = kubectl(kubeconfig, "get", "gnp/node-1.example.com", "--no-headers")
    assert line.split()[:5] == ["node-1.example.com", "Simulated", "2", "2", "Simulated"]
    await kube.delete(GPUNODEPROFILE, "node-1.example.com")


def test_the_server_keeps_the_crds_as_they_were_rendered(kubeconfig: str) -> None:
    for definition in DEFINITIONS:
        rendered = render(definition)
        served = json.loads(kubectl(kubeconfig, "get", "crd", rendered["metadata"]["name"], "-o", "json"))
        assert served["spec"]["versions"] == rendered["spec"]["versions"]
        problems = [c for c in served["status"]["conditions"] if c["type"] == "NonStructuralSchema"]
        assert problems == []
