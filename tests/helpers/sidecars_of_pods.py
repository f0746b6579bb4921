"""Real sidecars at the addresses of kwok's pods, whose engines answer when the test says so."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp

from helpers.fake_engine import FakeEngine
from uellm.kube import POD, Kube
from uellm.kube.kinds import CONFIGMAP
from uellm.pod_interface import METRICS_PORT, SIDECAR_PORT
from uellm.proxying.process import Address
from uellm.sidecar.process import Sidecar, SidecarOptions


class SidecarsOfPods:
    """A sidecar for each pod of a service, with the configuration that the operator wrote."""

    def __init__(self, kube: Kube, namespace: str, name: str, directory: Path) -> None:
        self._kube = kube
        self._namespace = namespace
        self._name = name
        self._directory = directory
        self.engines: dict[str, FakeEngine] = {}
        """By the pods' addresses."""
        self._stacks: dict[str, AsyncExitStack] = {}

    async def follow(self) -> None:
        """Start and end sidecars as pods come and go, until cancelled."""
        while True:
            pods = await self._kube.list(POD, self._namespace, label_selector=f"uellm.io/service={self._name}")
            addresses = {pod["status"]["podIP"] for pod in pods if pod["status"].get("podIP")}
            for address in self._stacks.keys() - addresses:
                await self._stacks.pop(address).aclose()
                del self.engines[address]
            for address in addresses - self._stacks.keys():
                await self._start(address)
            await asyncio.sleep(0.2)

    async def _start(self, address: str) -> None:
        config = await self._kube.get(CONFIGMAP, f"{self._name}-config", self._namespace)
        assert config is not None
        directory = self._directory / address
        directory.mkdir(exist_ok=True)
        (directory / "sidecar.yaml").write_text(config["data"]["sidecar.yaml"])
        stack = self._stacks[address] = AsyncExitStack()
        engine = FakeEngine()
        engine.script = engine.on_word
        await engine.start()
        stack.push_async_callback(engine.end)
        options = SidecarOptions(
            listen=Address(address, SIDECAR_PORT),
            metrics_listen=Address(address, METRICS_PORT),
            engine=engine.address,
            config=directory / "sidecar.yaml",
            lame_duck_s=0.0,
            grace_s=1.0,
        )
        await stack.enter_async_context(Sidecar(options))
        self.engines[address] = engine

    async def close(self) -> None:
        """End all sidecars."""
        for stack in self._stacks.values():
            await stack.aclose()

    async def ask(self, client: aiohttp.ClientSession, requests: int) -> list[asyncio.Task[int]]:
        """Send requests to the only pod. Their statuses, once they are answered."""
        [address] = self.engines

        async def one() -> int:
            url = f"http://{address}:{SIDECAR_PORT}/v1/completions"
            async with client.post(url, json={"model": self._name, "prompt": "a", "max_tokens": 8}) as response:
                await response.read()
                return response.status

        return [asyncio.create_task(one()) for _ in range(requests)]

    async def metric(self, client: aiohttp.ClientSession, address: str, name: str) -> float | None:
        """A metric without labels, as this pod shows it."""
        if address not in self.engines:
            return None
        async with client.get(f"http://{address}:{METRICS_PORT}/metrics") as response:
            lines = (await response.text()).splitlines()
        return next((float(line.split()[1]) for line in lines if line.startswith(f"{name} ")), None)

    def answer(self) -> None:
        """Answer what has arrived, and all that follows."""
        for engine in self.engines.values():
            engine.script = engine.echo
            for received in engine.received:
                received.go_on.set()
