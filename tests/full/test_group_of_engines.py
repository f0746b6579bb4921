"""Two launchers and two real engines form one replica over loopback, as two pods on two nodes do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from helpers.group import ADDRESS, Group, Pod, group_plan
from helpers.real_engine import ENVIRONMENT, wait_for
from uellm_devcluster import tinymodel
from uellm_devcluster.local import free_port, free_ports

PROMPTS = ["One two three", "The layers of a model", "Seven"]
LAYERS = [3, 5]
ENDED_S = 60.0
CPU = {name: value for name, value in ENVIRONMENT.items() if name not in ("VLLM_HOST_IP", "GLOO_SOCKET_IFNAME")}


def plan(model: Path, nodes: int) -> dict[str, Any]:
    shape = {"gpusPerReplica": 2, "tensor": 1, "pipeline": 2, "layers": LAYERS}
    args = ["--max-model-len", "256", "--max-num-seqs", "4", "--kv-cache-memory-bytes", "64M"]
    return group_plan(
        plan={**shape, **({"nodes": nodes} if nodes > 1 else {})},
        layersOverride=LAYERS,
        classes=[{"product": "NVIDIA L4", "memoryBytes": 24 << 30}],
        engine={"model": str(model), "revision": "", "servedName": "tiny", "args": args},
    )


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    made = Group(tmp_path, tuple(free_ports("agreement", "engines").values()))
    yield made
    made.end()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tinymodel.make(tmp_path / "model")
    return tmp_path / "model"


def texts(address: str) -> list[str]:
    client = openai.OpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0, timeout=60)
    given = {"model": "tiny", "temperature": 0, "max_tokens": 16}
    return [client.completions.create(prompt=prompt, **given).choices[0].text for prompt in PROMPTS]


def ready(pod: Pod, address: str) -> None:
    wait_for(f"http://{address}/health", pod.process, pod.log)


def partition_of_engine(pod: Pod) -> str:
    return str(pod.report()["env"]["VLLM_PP_LAYER_PARTITION"])


def test_two_nodes_answer_as_one_does_and_end_together(group: Group, model: Path) -> None:
    address = f"{ADDRESS}:{free_port()}"
    alone = group.start(0, "GPU-a,GPU-b", plan=plan(model, 1), version="", listen=address, LWS_GROUP_SIZE="", **CPU)
    ready(alone, address)
    expected = texts(address)
    alone.process.terminate()
    alone.process.wait(ENDED_S)

    address = f"{ADDRESS}:{free_port()}"
    both = [
        group.start(index, gpu, plan=plan(model, 2), version="", listen=address, timeout_s=120, **CPU)
        for index, gpu in enumerate(("GPU-a", "GPU-b"))
    ]
    leader, worker = both
    ready(leader, address)
    assert texts(address) == expected
    assert [partition_of_engine(pod) for pod in both] == ["3,5", "3,5"]
    assert leader.report()["layers"] == LAYERS

    worker.process.kill()
    assert leader.process.wait(ENDED_S) != 0
