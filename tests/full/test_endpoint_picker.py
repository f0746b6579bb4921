"""The real endpoint picker of the Gateway API inference extension chooses between real sidecars.

The pool is the operator's own. The test plays three parts: Envoy, which asks the picker over ext-proc and sends the
request where it says; the kubelet, which writes the pods' addresses and readiness; and the engines behind the sidecars.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest
import yaml

from helpers.ext_proc import Pick, pick
from helpers.fake_engine import FakeEngine
from uellm import drain_token
from uellm.api import parse_service
from uellm.kube import CRD, LLMSERVICE, POD, Kube, NotFound
from uellm.kube.kinds import INFERENCEPOOL
from uellm.proxying.process import Address
from uellm.reconcile.children.inference_pool import inference_pool
from uellm.sidecar.process import Sidecar, SidecarOptions
from uellm_devcluster import ControlPlane
from uellm_devcluster.binaries import INFERENCE_EXTENSION_VERSION, ensure, module_files
from uellm_devcluster.local import free_ports

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
EXTENSION = "sigs.k8s.io/gateway-api-inference-extension"
MANAGER = "uellm-tests"
# Every address of 127.0.0.0/8 is the machine's own, so each pod has one and all have the same port.
ADDRESSES = {"a": "127.81.0.1", "b": "127.81.0.2", "c": "127.81.0.3"}
KEY = "a-key-of-the-service"
SERVICE = {
    "apiVersion": LLMSERVICE.api_version,
    "kind": LLMSERVICE.kind,
    "metadata": {"name": "llama", "namespace": "default"},
    "spec": {"model": {"uri": "hf://org/llama"}, "routing": "InferencePool"},
}
CLASSES = [{"name": "interactive", "ttft": "1s"}, {"name": "batch", "e2e": "60s"}]
# That of the extension's own manifests.
PLUGINS = {
    "apiVersion": "inference.networking.x-k8s.io/v1alpha1",
    "kind": "EndpointPickerConfig",
    "plugins": [{"type": f"{name}-scorer"} for name in ("queue", "kv-cache-utilization", "prefix-cache")],
    "schedulingProfiles": [
        {
            "name": "default",
            "plugins": [{"pluginRef": f"{name}-scorer"} for name in ("queue", "kv-cache-utilization", "prefix-cache")],
        }
    ],
}
ENGINE_METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="llama"}} 0.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="llama"}} 0.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{{engine="0",model_name="llama"}} {kv_used}
# HELP vllm:lora_requests_info Running stats on lora requests.
# TYPE vllm:lora_requests_info gauge
vllm:lora_requests_info{{max_lora="4",running_lora_adapters="",waiting_lora_adapters=""}} 1.7e+09
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{{block_size="16",engine="0",num_gpu_blocks="24000"}} 1.0
"""


class EnginePod:
    """A pod of the service: a sidecar on an address of its own, and a stand-in for its engine."""

    def __init__(self, name: str, port: int, directory: Path, kube: Kube) -> None:
        self.name = name
        self.address = f"{ADDRESSES[name]}:{port}"
        self.engine = FakeEngine()
        self.kube = kube
        self._listen = Address(ADDRESSES[name], port)
        self._directory = directory / name

    async def start(self, stack: AsyncExitStack) -> None:
        keys = self._directory / "keys"
        keys.mkdir(parents=True)
        (keys / "team").write_text(KEY)
        config = self._directory / "sidecar.yaml"
        document = {"model": "llama", "classes": CLASSES, "defaultClass": "interactive", "engine": {"maxNumSeqs": 1}}
        config.write_text(yaml.safe_dump({**document, "auth": {"keysDirectory": str(keys)}}))
        self.uses_kv(0.1)
        await self.engine.start()
        stack.push_async_callback(self.engine.end)
        options = SidecarOptions(
            listen=self._listen,
            metrics_listen=Address(self._listen.host, 0),
            engine=self.engine.address,
            config=config,
            placement=self._directory / "placement.json",
            engine_poll_s=0.05,
            engine_poll_away_s=0.05,
            lame_duck_s=0.0,
        )
        self.sidecar = await stack.enter_async_context(Sidecar(options))
        metadata = {"name": f"llama-{self.name}", "namespace": "default", "labels": {"uellm.io/service": "llama"}}
        container = {"name": "engine", "image": "engine:1"}
        spec = {"containers": [container], "schedulerName": "nobody"}
        await self.kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        await eventually(self.probe)

    def uses_kv(self, share: float) -> None:
        self.engine.metrics = ENGINE_METRICS.format(kv_used=share)

    async def probe(self) -> bool:
        """Write the pod's readiness, as the kubelet does after a probe, and return it."""
        url = f"http://{self._listen.host}:{self.sidecar.metrics_port}/readyz"
        async with aiohttp.ClientSession() as client, client.get(url) as response:
            ready = response.status == 200
        condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": "2026-01-01T00:00:00Z"}
        address = self._listen.host
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": [condition]}
        metadata = {"name": f"llama-{self.name}", "namespace": "default"}
        document = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status}
        await self.kube.apply_status(document, manager=MANAGER)
        return ready

    async def drain(self) -> None:
        """What the engine's preStop hook asks for."""
        (self._directory / drain_token.FILE).write_text("secret")
        url = f"http://{self._listen.host}:{self.sidecar.metrics_port}/uellm/drain"
        async with aiohttp.ClientSession() as client:
            answer = await client.post(url, headers={drain_token.HEADER: "secret"})
            assert answer.status == 200


class Envoy:
    """Asks the picker, and sends requests where it says."""

    def __init__(self, channel: grpc.aio.Channel, client: aiohttp.ClientSession) -> None:
        self._channel = channel
        self._client = client

    async def pick(self, prompt: str = "", **headers: str) -> Pick:
        body = {"model": "llama", "prompt": prompt or f"{uuid.uuid4()} tells a story" * 8, "max_tokens": 8}
        sent = {":method": "POST", ":path": "/v1/completions", "content-type": "application/json"}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await pick(self._channel, json.dumps(body).encode(), {**sent, **named})

    async def picks(self, count: int) -> set[str]:
        """Where requests of unlike prompts go."""
        return {(await self.pick()).endpoint for _ in range(count)}

    async def send(self, picked: Pick, **headers: str) -> aiohttp.ClientResponse:
        own = {name: value for name, value in picked.headers.items() if not name.startswith(":")}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self._client.post(
            f"http://{picked.endpoint}/v1/completions",
            data=picked.body,
            headers={**named, **own, "Authorization": f"Bearer {KEY}"},
        )


async def eventually(holds: Callable[[], Awaitable[Any]], within_s: float = 90.0) -> None:
    deadline = time.monotonic() + within_s
    while not await holds():
        assert time.monotonic() < deadline, f"not within {within_s:g} s"
        await asyncio.sleep(0.1)


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane(kwok_nodes=0) as plane:
        yield plane


@pytest.fixture
async def kube(plane: ControlPlane) -> AsyncIterator[Kube]:
    async with await Kube.connect(kubeconfig=str(plane.kubeconfig)) as kube:
        paths = [
            *sorted((ROOT / "manifests" / "crds").glob("*.yaml")),
            *module_files(EXTENSION, INFERENCE_EXTENSION_VERSION, "config/crd/bases/*.yaml"),
        ]
        for path in paths:
            crd = yaml.safe_load(path.read_text())
            crd.pop("status", None)
            await kube.apply(crd, manager=MANAGER)
            await eventually(lambda name=crd["metadata"]["name"]: established(kube, name))
        yield kube


async def established(kube: Kube, name: str) -> bool:
    conditions = ((await kube.get(CRD, name) or {}).get("status") or {}).get("conditions") or []
    return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)


@pytest.fixture
async def pods(kube: Kube, tmp_path: Path) -> AsyncIterator[dict[str, EnginePod]]:
    """The pods of a service, and its InferencePool."""
    port = free_ports("sidecars")["sidecars"]
    service = await kube.apply(SERVICE, manager=MANAGER)
    pool = inference_pool(service, parse_service(SERVICE))
    pool["spec"]["targetPorts"] = [{"number": port}]
    await eventually(lambda: applied(kube, pool))
    async with AsyncExitStack() as stack:
        found = {name: EnginePod(name, port, tmp_path, kube) for name in ADDRESSES}
        for pod in found.values():
            await pod.start(stack)
        yield found
        for pod in found.values():
            await kube.delete(POD, f"llama-{pod.name}", "default", grace_s=0)
    await kube.delete(INFERENCEPOOL, "llama", "default")
    await kube.delete(LLMSERVICE, "llama", "default")


async def applied(kube: Kube, document: dict[str, Any]) -> bool:
    try:
        await kube.apply(document, manager=MANAGER)
    except NotFound:
        return False  # the API server serves a new kind a moment after it is established
    return True


@pytest.fixture
def picker(plane: ControlPlane, pods: dict[str, EnginePod], tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The picker at work on the pool: its address and its log."""
    ports = free_ports("grpc", "health", "metrics")
    command = [
        str(ensure({"epp"}) / "epp"),
        "--pool-name=llama",
        "--pool-namespace=default",
        "--secure-serving=false",
        f"--grpc-port={ports['grpc']}",
        f"--grpc-health-port={ports['health']}",
        f"--metrics-port={ports['metrics']}",
        f"--config-text={yaml.safe_dump(PLUGINS)}",
    ]
    log = tmp_path / "epp.log"
    environment = {**os.environ, "KUBECONFIG": str(plane.kubeconfig), "no_proxy": "*"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    yield f"127.0.0.1:{ports['grpc']}", log
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()


@pytest.fixture
async def envoy(picker: tuple[str, Path], pods: dict[str, EnginePod]) -> AsyncIterator[Envoy]:
    """A client of the picker, which knows all pods."""
    address, log = picker
    everywhere = {pod.address for pod in pods.values()}
    async with grpc.aio.insecure_channel(address) as channel, aiohttp.ClientSession() as client:
        envoy = Envoy(channel, client)

        async def picks_all() -> bool:
            try:
                return await envoy.picks(12) == everywhere
            except grpc.aio.AioRpcError:
                return False  # it does not listen yet

        try:
            await eventually(picks_all)
        except AssertionError as error:
            error.add_note(log.read_text()[-6000:])
            raise
        yield envoy


async def is_left_alone(envoy: Envoy, pod: EnginePod) -> None:
    """The picker gets to know of it within moments, and then picks the pod for nothing."""

    async def seen() -> bool:
        return pod.address not in await envoy.picks(12)

    await eventually(seen)
    assert pod.address not in await envoy.picks(30)


async def test_a_pod_whose_sidecar_has_a_queue_is_left_alone(envoy, pods):
    busy = pods["a"]
    busy.engine.script = busy.engine.on_word
    picked = Pick(busy.address, {"content-type": "application/json"}, b'{"model": "llama", "prompt": "a"}')
    asked = [asyncio.create_task(envoy.send(picked)) for _ in range(6)]

    async def queued() -> bool:
        return bool(busy.sidecar.dispatcher.queued == 5)

    await eventually(queued)
    # The engine itself says that nothing waits: the requests are in the sidecar.
    await is_left_alone(envoy, busy)
    for _ in asked:
        (await busy.engine.arrivals.get()).go_on.set()
    assert {(await task).status for task in asked} == {200}

    async def is_back() -> bool:
        return busy.address in await envoy.picks(12)

    await eventually(is_back)


async def test_a_pod_with_a_full_kv_cache_is_left_alone(envoy, pods):
    pods["b"].uses_kv(0.95)
    await is_left_alone(envoy, pods["b"])


async def test_prompts_with_the_same_beginning_go_to_the_same_pod(envoy):
    beginnings = [f"{uuid.uuid4()} {'has seen much of the world ' * 40}" for _ in range(4)]
    first = [(await envoy.pick(beginning)).endpoint for beginning in beginnings]
    # The picker remembers a prompt in the background, while it answers others.
    await envoy.picks(12)
    for turn in range(5):
        assert [(await envoy.pick(f"{beginning}{turn}")).endpoint for beginning in beginnings] == first


async def test_a_pod_that_drains_is_left_alone(envoy, pods):
    await pods["c"].drain()
    assert not await pods["c"].probe()
    await is_left_alone(envoy, pods["c"])
    for name in ("a", "b"):
        await pods[name].drain()
        await pods[name].probe()

    async def refuses() -> bool:
        return (await envoy.pick()).refused == 503

    await eventually(refuses)


async def test_a_request_gets_through_with_its_objective_and_its_targets(envoy, pods):
    told = {"x_gateway_inference_objective": "batch", "x_gateway_inference_fairness_id": "acme"}
    picked = await envoy.pick(**told)
    # Envoy keeps the headers that the picker has not changed.
    answer = await envoy.send(picked, **told)
    assert (answer.status, answer.headers["x-uellm-class"]) == (200, "batch")
    [pod] = [pod for pod in pods.values() if pod.address == picked.endpoint]
    received = pod.engine.received[-1]
    assert json.loads(received.body)["max_tokens"] == 8
    assert not [name for name in received.headers if "inference" in name.lower()]
    refused = await envoy.send(picked, x_llm_d_slo_ttft_ms="soon")
    assert refused.status == 400
