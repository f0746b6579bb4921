"""The real `uellm controller`: watches, lease, health, signals."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from helpers.sizes import GIB
from uellm.kube import GPUNODEPROFILE, LEASE
from uellm.kube.kinds import CONFIGMAP

pytestmark = pytest.mark.timeout(120)


class Process:
    """`uellm controller` with its own health port."""

    def __init__(self, kubeconfig: str, namespace: str, log: Path) -> None:
        self.log = log
        self.port = _free_port()
        command = [str(Path(sys.executable).with_name("uellm")), "controller"]
        options = {"health-listen": f"127.0.0.1:{self.port}", "namespace": namespace}
        images = {"engine-image": "engine:1", "sidecar-image": "sidecar:1", "launcher-image": "launcher:1"}
        command += [f"--{name}={value}" for name, value in (options | images).items()]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, env={**os.environ, "KUBECONFIG": kubeconfig}, stdout=output, stderr=output
            )

    def healthy(self) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{self.port}/healthz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError):
            return False

    def end(self, number: int = signal.SIGTERM, *, timeout_s: float = 10.0) -> int:
        self._process.send_signal(number)
        return self._process.wait(timeout=timeout_s)

    def children(self) -> list[int]:
        """Ids of its child processes, including the planner's."""
        listed = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        return [int(pid) for pid in listed.split()]

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def text(self) -> str:
        return self.log.read_text()


def _free_port() -> int:
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        return int(each.getsockname()[1])


@pytest.fixture
def controller(kubeconfig, namespace, tmp_path):
    started = []

    def start():
        started.append(Process(kubeconfig, namespace, tmp_path / f"controller-{len(started)}.log"))
        return started[-1]

    yield start
    for process in started:
        if not process.ended:
            process.end(signal.SIGKILL)


@pytest.fixture
def planned(eventually):
    async def wait(llama):
        async def is_planned():
            conditions = (await llama.status()).get("conditions") or []
            return any(entry["type"] == "Planned" and entry["status"] == "True" for entry in conditions)

        await eventually(is_planned, timeout_s=40)
        await eventually(lambda: _complete(llama), timeout_s=20)

    return wait


async def _complete(llama):
    return len(await llama.children()) == 4


async def test_it_plans_repairs_follows_profiles_and_ends_in_time(
    controller, service, gpu_node, kube, namespace, eventually, planned
):
    process = controller()
    llama = await service()
    waits = await service("waits")
    await gpu_node([24 * GIB])
    await planned(llama)
    assert process.healthy()

    await kube.delete(CONFIGMAP, "llama-config", namespace)
    await eventually(lambda: llama.child(CONFIGMAP), timeout_s=30)

    assert (await waits.condition("Planned"))[1] == "NoFit"
    await llama.delete()
    await planned(waits)

    assert process.end() == 0, process.text()
    assert "ERROR" not in process.text()
    lease = await kube.get(LEASE, "uellm-controller", namespace)
    assert lease["spec"].get("holderIdentity", "") == ""


async def test_a_profile_that_changes_plans_a_service_anew(controller, service, gpu_node, kube, planned, eventually):
    node = await gpu_node([24 * GIB])
    controller()
    llama = await service()
    await planned(llama)
    document = await kube.get(GPUNODEPROFILE, node)
    document["status"]["devices"][0]["health"] = {"state": "Quarantined"}
    kept = {name: document[name] for name in ("apiVersion", "kind", "status")}
    await kube.apply_status({**kept, "metadata": {"name": node}}, manager="uellm-tests")

    async def told():
        return (await llama.condition("Planned"))[0] == "False"

    await eventually(told)


async def test_two_at_a_time_only_one_works_and_the_other_takes_over(
    controller, service, gpu_node, kube, namespace, eventually, planned
):
    await gpu_node([24 * GIB])
    first = controller()

    async def held():
        lease = await kube.get(LEASE, "uellm-controller", namespace)
        return lease and lease["spec"]["holderIdentity"]

    holder = await eventually(held)
    second = controller()
    await eventually(lambda: _says(second, "waiting for"), timeout_s=30)
    assert second.healthy()
    first.end()
    llama = await service()
    await planned(llama)
    assert await held() != holder


async def test_killed_outright_nothing_stays_and_the_next_one_goes_on(
    controller, service, gpu_node, planned, eventually
):
    await gpu_node([24 * GIB])
    llama = await service()
    first = controller()
    await planned(llama)
    before = await llama.state()
    under_it = first.children()
    assert under_it
    first.end(signal.SIGKILL)
    await eventually(lambda: _gone(under_it))
    await llama.change(lambda spec: spec.update(replicas=2))
    controller()

    async def scaled():
        return (await llama.deployment())["spec"]["replicas"] == 2

    await eventually(scaled, timeout_s=60)
    after = await llama.state()
    assert after["ConfigMap"] == before["ConfigMap"]


async def test_one_whose_lease_was_taken_ends(controller, kube, namespace, eventually):
    process = controller()

    async def held():
        return await kube.get(LEASE, "uellm-controller", namespace)

    lease = await eventually(held)
    lease["spec"]["holderIdentity"] = "usurper"
    metadata = {name: lease["metadata"][name] for name in ("name", "namespace")}
    await kube.apply({**lease, "metadata": metadata}, manager="usurper")
    await eventually(lambda: _ended(process), timeout_s=30)
    assert process.end(0) == 1
    assert "usurper" in process.text()


async def _says(process, text):
    return text in process.text()


async def _ended(process):
    return process.ended


async def _gone(pids):
    return not any(_lives(pid) for pid in pids)


def _lives(pid):
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
