"""Every document that the API server accepts leads to children or a condition: no crash, deadlock or endless writes."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.sizes import GIB
from uellm.kube import LLMSERVICE, KubeError

CASES = yaml.safe_load((Path(__file__).parents[2] / "data/llmservice-cases.yaml").read_text())
TEMPLATES: list[dict[str, Any]] = [
    {"spec": None},
    {"spec": {"containers": []}},
    {"spec": {"containers": None}},
    {"spec": {"containers": [{"name": "engine", "env": None, "args": ["--x"], "livenessProbe": None}]}},
    {"spec": {"containers": [{"name": "extra", "image": "x:1", "env": [{"name": "A", "value": None}]}]}},
    {"spec": {"initContainers": [{"name": "sidecar", "resources": {"limits": {"cpu": "0.5"}}}]}},
    {"spec": {"volumes": [{"name": "cache", "persistentVolumeClaim": {"claimName": "x"}}]}},
    {"spec": {"securityContext": {"fsGroup": 1000, "runAsUser": 0, "runAsNonRoot": False}}},
    {"spec": {"tolerations": [{"operator": "Exists"}], "affinity": {"podAntiAffinity": {}}}},
    {"spec": {"affinity": {"nodeAffinity": None}, "hostNetwork": True, "dnsPolicy": "None"}},
    {"spec": {"containers": [{"name": "engine", "image": "other:2", "imagePullPolicy": "Always"}]}},
    {"spec": {"terminationGracePeriodSeconds": 0, "activeDeadlineSeconds": None, "hostAliases": []}},
    {"spec": {"containers": 5}},
    {"spec": {"containers": [5]}},
    {"spec": {"volumes": {"name": "x"}}},
    {"spec": {"terminationGracePeriodSeconds": "soon"}},
    {"metadata": {"labels": {"uellm.io/service": "other"}}},
    {"metadata": {"labels": {"a": "not a label!"}}},
    {"metadata": {"annotations": {"uellm.io/plan": "nonsense"}}},
    {"metadata": {"labels": 5}},
]
CONFIGS: list[dict[str, Any]] = [
    {"num_hidden_layers": 1},
    {"num_hidden_layers": 0},
    {"num_hidden_layers": -3},
    {"num_hidden_layers": "32"},
    {"num_hidden_layers": 1e9},
    {"num_hidden_layers": 10**6},
    {"hidden_size": None},
    {"hidden_size": 1.5},
    {"vocab_size": 2**62},
    {"num_attention_heads": 7},
    {"num_key_value_heads": 3},
    {"torch_dtype": "int3"},
    {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    {"quantization_config": "fp8"},
    {"architectures": []},
    {"architectures": "LlamaForCausalLM"},
    {"max_position_embeddings": 10**9},
    {"rope_scaling": {"factor": "x"}},
    {"text_config": {"a": 1}},
    {},
]
SPECS: list[dict[str, Any]] = [
    {"parallelism": {"tensor": 2}},
    {"parallelism": {"pipeline": 2}},
    {"parallelism": {"layers": [1] * 32}},
    {"parallelism": {"layers": [31, 1]}},
    {"parallelism": {"tensor": 64, "pipeline": 64}},
    {"placement": {"gpus": {"min": 2, "max": 2}}},
    {"placement": {"gpus": {"min": 64}}},
    *({"placement": {"policy": policy}} for policy in ("HELR", "HE", "LR", "BGS", "Even")),
    *({"slo": {"objective": objective}} for objective in ("Efficiency", "Latency", "Throughput")),
    {"slo": {"classes": [{"name": "a", "ttft": "1ms", "tpot": "1ms"}]}},
    {"slo": {"classes": [{"name": f"c{n}", "e2e": "1s"} for n in range(16)]}},
    {"workload": {"requestsPerSecond": "999999999"}},
    {"workload": {"requestsPerSecond": "1m", "promptTokens": {"p95": 1}, "outputTokens": {"mean": 10**8}}},
    {"replicas": 0},
    {"replicas": 1000},
    {"suspend": True},
    {"suspend": True, "replicas": 0, "template": {"spec": {"noSuchField": 1}}},
    {"engine": {"args": ["--max-num-seqs", "4", "--enforce-eager", ""]}},
    {"engine": {"args": ["--kv-cache-memory-bytes=1000000000"]}},
    {"engine": {"args": ["--gpu-memory-utilization", "x"]}},
    {"engine": {"env": [{"name": "HOME", "value": "/h"}], "image": "a/b@sha256:" + "0" * 64}},
    {"engine": {"resources": {"limits": {"cpu": 1, "memory": "1Gi"}, "requests": {"cpu": "1500m"}}}},
    {"engine": {"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}}},
    {"engine": {"startupTimeout": "1s"}},
    {"rollout": {"maxSurge": 100, "maxUnavailable": 100}},
    {"scheduling": {"policy": "EDF", "maxQueuedRequests": 1}},
]


def documents(base):
    """The base document with one change each."""
    for case in CASES:
        if "metadata.name" not in case.get("set", {}):
            yield case["name"], _changed(base, case)
    for changes in [*({"template": each} for each in TEMPLATES), *SPECS]:
        yield str(changes), {**base, "spec": {**copy.deepcopy(base["spec"]), **copy.deepcopy(changes)}}
    for config in CONFIGS:
        changed = copy.deepcopy(base)
        changed["spec"]["model"]["config"] |= config
        yield str(config), changed


def _changed(base, case):
    document = copy.deepcopy(base)
    for path, value in case.get("set", {}).items():
        *parents, last = path.split(".")
        part = document
        for parent in parents:
            part = part.setdefault(parent, {})
        part[last] = copy.deepcopy(value)
    return document


@pytest.mark.timeout(600)
async def test_every_mutation_ends_in_children_or_in_a_condition(operator, service, gpu_node, kube):
    await gpu_node([24 * GIB, 24 * GIB])
    first = await service("base")
    base = await first.get()
    await first.delete()
    accepted = 0
    for number, (what, document) in zip(itertools.count(), documents(base), strict=False):
        document = {name: document[name] for name in ("apiVersion", "kind", "spec")}
        document["metadata"] = {"name": f"m{number}", "namespace": first.namespace}
        try:
            await kube.create(document)
        except KubeError:
            continue
        accepted += 1
        mutated = type(first)(kube, first.namespace, f"m{number}")
        await operator().step(mutated.name)
        _, reason, message = await mutated.condition("Ready")
        assert reason != "PlannerFailed", (what, message)
        assert (await mutated.status())["observedGeneration"] == 1, what
        assert bool(await mutated.children()) == (reason in ("EngineStarting", "Suspended")), (what, reason, message)
        await kube.delete(LLMSERVICE, mutated.name, first.namespace)
    assert accepted >= 80
