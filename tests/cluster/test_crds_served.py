"""The CRDs on a real API server: what it refuses, fills in, prints and scales."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from uellm.api import parse_service
from uellm.api.crd import DEFINITIONS, render
from uellm.kube import LLMSERVICE, Invalid, Kube, KubeError
from uellm_devcluster import ControlPlane
from uellm_devcluster.binaries import ensure

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
CASES = yaml.safe_load((ROOT / "tests/data/llmservice-cases.yaml").read_text())
VALID: dict[str, Any] = {
    "apiVersion": "uellm.io/v1alpha1",
    "kind": "LLMService",
    "metadata": {"name": "llama", "namespace": "default"},
    "spec": {"model": {"uri": "hf://meta-llama/Llama-3.1-8B"}},
}


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane(controller_manager=False, scheduler=False) as plane:
        kubectl(plane, "apply", "--server-side", "-f", str(ROOT / "manifests/crds"))
        kubectl(plane, "wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
        yield plane


@pytest.fixture
async def kube(plane: ControlPlane) -> AsyncIterator[Kube]:
    async with await Kube.connect(kubeconfig=str(plane.kubeconfig)) as kube:
        yield kube
        for service in await kube.list(LLMSERVICE):
            await kube.delete(LLMSERVICE, service["metadata"]["name"], "default")


def kubectl(plane: ControlPlane, *args: str, input_text: str | None = None) -> str:
    program = str(ensure({"kubectl"}) / "kubectl")
    command = [program, "--kubeconfig", str(plane.kubeconfig), *args]
    done = subprocess.run(command, input=input_text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def changed(case: dict[str, Any]) -> dict[str, Any]:
    document = copy.deepcopy(VALID)
    for path, value in case.get("set", {}).items():
        *parents, last = path.split(".")
        part = document
        for parent in parents:
            part = part.setdefault(parent, {})
        part[last] = value
    for path in case.get("drop", ()):
        *parents, last = path.split(".")
        part = document
        for parent in parents:
            part = part[parent]
        del part[last]
    return document


async def test_the_server_accepts_and_refuses_what_the_types_do_and_names_the_field(kube: Kube) -> None:
    differing = {}
    for case in CASES:
        document = changed(case)
        try:
            await kube.create(document)
            answer = ""
            await kube.delete(LLMSERVICE, document["metadata"]["name"], "default")
        except KubeError as error:
            answer = str(error)
        if case.get("field", "") not in answer or ("field" in case) != bool(answer):
            differing[case["name"]] = answer
    assert differing == {}


async def test_the_server_fills_in_the_defaults_of_the_types(kube: Kube) -> None:
    created = await kube.create(VALID)
    written = {key: created[key] for key in ("apiVersion", "kind", "metadata", "spec")}
    assert parse_service(written).spec == parse_service(VALID).spec
    assert created["spec"]["replicas"] == 1
    assert created["spec"]["placement"]["gpus"] == {"min": 1}


async def test_an_update_is_held_to_the_same_rules(kube: Kube) -> None:
    await kube.create(VALID)
    worse = changed({"set": {"spec.placement": {"gpus": {"min": 2, "max": 1}}}})
    with pytest.raises(Invalid, match=r"spec\.placement\.gpus\.min"):
        await kube.apply(worse, manager="test")


async def test_a_template_and_a_config_keep_what_the_schema_does_not_know(kube: Kube) -> None:
    template = {"spec": {"containers": [{"name": "engine", "livenessProbe": None}], "anything": {"a": 1.5}}}
    config = {"rope_scaling": None, "rope_theta": 1.5, "architectures": ["LlamaForCausalLM"]}
    created = await kube.create(changed({"set": {"spec.template": template, "spec.model.config": config}}))
    assert created["spec"]["template"] == template
    assert created["spec"]["model"]["config"] == config


async def test_kubectl_prints_the_story_in_a_line(kube: Kube, plane: ControlPlane) -> None:
    await kube.create(VALID)
    condition = {
        "type": "Ready",
        "status": "False",
        "reason": "EngineStarting",
        "message": "the engine loads the model",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    summary = {"gpus": "2 = tp1 x pp2", "layers": "5,3", "nodes": "node-1", "slo": "99.2%", "ready": "0/1"}
    status = {"summary": summary, "conditions": [condition]}
    await kube.apply_status({**VALID, "status": status}, manager="test")
    header, line = kubectl(plane, "get", "llm").splitlines()
    assert header.split() == ["NAME", "MODEL", "GPUS", "LAYERS", "NODES", "SLO", "READY", "STATUS", "AGE"]
    assert line.split("   ")[0] == "llama"
    for value in (*summary.values(), "EngineStarting"):
        assert value in line


async def test_kubectl_scales(kube: Kube, plane: ControlPlane) -> None:
    await kube.create(VALID)
    kubectl(plane, "scale", "llmservice/llama", "--replicas=2")
    service = await kube.get(LLMSERVICE, "llama", "default")
    assert service is not None
    assert service["spec"]["replicas"] == 2


def test_kubectl_explains_every_field(plane: ControlPlane) -> None:
    text = kubectl(plane, "explain", "llmservice.spec.placement.gpus")
    assert "Fewest GPUs of a replica" in text


def test_the_short_name_of_profiles_is_gnp(plane: ControlPlane) -> None:
    profile = {
        "apiVersion": "uellm.io/v1alpha1",
        "kind": "GPUNodeProfile",
        "metadata": {"name": "node-1.example.com"},
    }
    kubectl(plane, "create", "-f", "-", input_text=json.dumps(profile))
    assert "node-1.example.com" in kubectl(plane, "get", "gnp")


def test_the_server_keeps_the_crds_as_they_were_rendered(plane: ControlPlane) -> None:
    for definition in DEFINITIONS:
        rendered = render(definition)
        served = json.loads(kubectl(plane, "get", "crd", rendered["metadata"]["name"], "-o", "json"))
        assert served["spec"]["versions"] == rendered["spec"]["versions"]
        problems = [c for c in served["status"]["conditions"] if c["type"] == "NonStructuralSchema"]
        assert problems == []
