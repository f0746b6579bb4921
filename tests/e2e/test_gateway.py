"""Two services, one URL: the official client through the gateway and two sidecars to two real engines."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import yaml

from helpers.real_engine import end, start, wait_for
from uellm_devcluster import tinymodel
from uellm_devcluster.local import free_port

NAMES = ("tiny", "other")
PROMPT = [{"role": "user", "content": "How does the import statement work?"}]


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The gateway's address as `gateway`, and each engine's by the name of its model."""
    scratch = tmp_path_factory.mktemp("gateway")
    tinymodel.make(scratch / "model")
    programs, processes, services = Path(sys.executable).parent, [], []
    engines = {name: f"127.0.0.1:{free_port()}" for name in NAMES}
    gateway = f"127.0.0.1:{free_port()}"
    serve = [programs / "vllm", "serve", scratch / "model", "--host", "127.0.0.1", "--dtype", "float32"]
    serve += ["-cc.mode=2", "-cc.backend=eager", "--kv-cache-memory-bytes", "64M", "--max-model-len", "512"]
    config = scratch / "sidecar.yaml"
    config.write_text(yaml.safe_dump({"classes": [{"name": "chat", "ttft": "10s"}]}))
    try:
        for name, engine in engines.items():
            sidecar, metrics = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
            command = [*serve, "--served-model-name", name, "--port", engine.rpartition(":")[2]]
            processes.append(start(command, scratch / f"{name}.log"))
            front = [programs / "uellm", "sidecar", "--listen", sidecar, "--engine", f"http://{engine}"]
            front += ["--config", config, "--metrics-listen", metrics]
            processes.append(start(front, scratch / f"sidecar-{name}.log"))
            services.append({"name": name, "namespace": "team-a", "replicas": [sidecar]})
            wait_for(f"http://{metrics}/readyz", processes[-2], scratch / f"{name}.log")
        (scratch / "services.yaml").write_text(yaml.safe_dump({"services": services}))
        command = [programs / "uellm", "gateway", "--listen", gateway, "--static", scratch / "services.yaml"]
        processes.append(start(command, scratch / "gateway.log"))
        wait_for(f"http://{gateway}/health", processes[-1], scratch / "gateway.log")
        yield {"gateway": gateway, **engines}
    finally:
        for process in processes[::-1]:
            end(process)


def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0)


def test_two_services_answer_at_one_url_as_their_engines_do(addresses: dict[str, str]) -> None:
    door = client(addresses["gateway"])
    assert [model.id for model in door.models.list()] == sorted(NAMES)
    for name in NAMES:
        given = {"model": name, "messages": PROMPT, "temperature": 0, "max_tokens": 12}
        direct = client(addresses[name]).chat.completions.create(**given)
        assert door.chat.completions.create(**given).choices == direct.choices
        full_name = given | {"model": f"team-a/{name}"}
        stream = list(door.chat.completions.create(**full_name, stream=True))
        assert "".join(event.choices[0].delta.content or "" for event in stream) == direct.choices[0].message.content
        assert {event.model for event in stream} == {name}
    with pytest.raises(openai.NotFoundError, match=r"There are: other, tiny"):
        door.chat.completions.create(model="gpt-4", messages=PROMPT)
