"""`kubectl uellm plan -f svc.yaml`: what the operator would decide in this cluster, without applying anything."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.sizes import GIB
from uellm.kube import LLMSERVICE
from uellm_devcluster.binaries import ensure


@pytest.fixture
def kubectl_plan(tmp_path: Path, kubeconfig: str, namespace: str):
    """Run `kubectl uellm plan -f <document>` as a user would; returns status, output, error."""
    plugin = tmp_path / "kubectl-uellm"
    plugin.write_text(f"#!{sys.executable}\nfrom uellm.cli.main import plugin\nraise SystemExit(plugin())\n")
    plugin.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "KUBECONFIG": kubeconfig}
    program = str(ensure({"kubectl"}) / "kubectl")

    async def run(document: dict[str, Any], *args: str) -> tuple[int, str, str]:
        path = tmp_path / "service.json"
        path.write_text(json.dumps(document))
        command = [program, "uellm", "plan", "-f", str(path), "-n", namespace, *args]
        done = await asyncio.to_thread(
            subprocess.run, command, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def nameless(service, namespace):
    """A service as in a file: without a namespace."""

    async def make(name: str, **spec: Any) -> dict[str, Any]:
        made = await service(name, **spec)
        document = await made.get()
        await made.delete()
        return {**{key: document[key] for key in ("apiVersion", "kind", "spec")}, "metadata": {"name": name}}

    return make


async def test_it_plans_as_the_operator_then_does_and_applies_nothing(
    operator, service, gpu_node, kube, namespace, kubectl_plan, nameless
):
    await gpu_node([24 * GIB, 24 * GIB])
    document = await nameless("llama")
    status, output, error = await kubectl_plan(document, "-o", "json")
    assert (status, error) == (0, "")
    assert await kube.list(LLMSERVICE, namespace) == []
    llama = await service("llama")
    await operator().settle("llama")
    decided = await llama.plan()
    foreseen = json.loads(output)
    for name in ("gpusPerReplica", "layers", "nodes", "stages", "maxNumBatchedTokens", "profileHash"):
        assert foreseen[name] == decided[name]


async def test_gpus_planned_for_another_service_are_not_planned_again(
    operator, service, gpu_node, kubectl_plan, nameless
):
    node = await gpu_node([24 * GIB])
    document = await nameless("second")
    assert (await kubectl_plan(document))[0] == 0
    first = await service("first")
    await operator().settle("first")
    assert (await first.plan())["nodes"] == [node]
    status, output, error = await kubectl_plan(document, "-o", "json")
    assert status == 1
    assert json.loads(output)["error"]["reason"] == "NoFit"
    assert "every free GPU is planned for other services" in error


async def test_the_services_own_gpus_count_as_free(operator, service, gpu_node, kubectl_plan):
    await gpu_node([24 * GIB])
    llama = await service("llama")
    await operator().settle("llama")
    document = await llama.get()
    mine = {**{key: document[key] for key in ("apiVersion", "kind", "spec")}, "metadata": {"name": "llama"}}
    assert (await kubectl_plan(mine))[0] == 0


async def test_it_draws_and_looks_at_labels(gpu_node, kubectl_plan, nameless):
    plain = await gpu_node([24 * GIB])
    labelled = await gpu_node([24 * GIB], labels={"pool": "llm"})
    document = await nameless("llama", template={"spec": {"nodeSelector": {"pool": "llm"}}})
    status, output, _ = await kubectl_plan(document, "-o", "svg")
    assert status == 0
    assert output.startswith("<svg ")
    assert f"node {labelled}" in output
    assert f"node {plain}" not in output


async def test_a_context_that_is_not_there_is_named(kubectl_plan, nameless):
    status, _, error = await kubectl_plan(await nameless("llama"), "--context", "nowhere")
    assert status == 2
    assert "nowhere" in error
