"""A controller and a sidecar that have IPv6 addresses only, besides loopback."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import urllib.request
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from helpers.controller_process import Process
from helpers.ipv6_namespace import ADDRESS, Ipv6Namespace
from helpers.sizes import GIB
from uellm.kube.kinds import CONFIGMAP, POD
from uellm_devcluster import forward

pytestmark = [pytest.mark.timeout(180), pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")]

API_PORT, SIDECAR_PORT, METRICS_PORT = 6443, 8000, 8002
BY_KWOK = {"placement": {"schedulerName": "default-scheduler"}}


@pytest.fixture
def only_ipv6(tmp_path):
    made = Ipv6Namespace(tmp_path / "network")
    yield made
    made.remove()


@asynccontextmanager
async def api_server_by_ipv6(only_ipv6, kubeconfig, to):
    """Write a kubeconfig for clients in the namespace, whose connections are passed on to the API server."""
    port = write_kubeconfig(kubeconfig, to)
    listening = only_ipv6.inside(lambda: socket.create_server((ADDRESS, API_PORT), family=socket.AF_INET6))
    serving = asyncio.create_task(forward.serve(listening, "127.0.0.1", port))
    try:
        yield str(to)
    finally:
        serving.cancel()


def write_kubeconfig(kubeconfig, to):
    """The same kubeconfig with the address in the namespace. Returns the API server's port on the host."""
    config = yaml.safe_load(Path(kubeconfig).read_text())
    cluster = config["clusters"][0]["cluster"]
    port = urlsplit(cluster["server"]).port
    # The server's certificate does not have this address.
    del cluster["certificate-authority-data"]
    cluster |= {"server": f"https://[{ADDRESS}]:{API_PORT}", "insecure-skip-tls-verify": True}
    to.write_text(yaml.safe_dump(config))
    return port


def get(only_ipv6, port, path):
    """The status of an answer to a client in the namespace."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return only_ipv6.inside(lambda: opener.open(f"http://[{ADDRESS}]:{port}{path}", timeout=10).status)


async def sidecar_files(llama, directory):
    """What the kubelet would mount."""
    (directory / "sidecar.yaml").write_text((await llama.child(CONFIGMAP))["data"]["sidecar.yaml"])
    (directory / "engine.yaml").write_text((await llama.revision())["data"]["engine.yaml"])


async def test_a_service_becomes_ready_where_all_addresses_are_ipv6(
    only_ipv6, kubeconfig, namespace, kube, service, gpu_node, planned, eventually, tmp_path
):
    await gpu_node([24 * GIB])
    llama = await service(**BY_KWOK)
    async with api_server_by_ipv6(only_ipv6, kubeconfig, tmp_path / "kubeconfig") as by_ipv6:
        controller = Process(by_ipv6, namespace, tmp_path / "controller.log", listen=":", enter=only_ipv6.entering([]))
        try:
            await planned(llama)
            await eventually(lambda: asyncio.to_thread(get, only_ipv6, controller.port, "/healthz"), timeout_s=30)
            await sidecar_files(llama, tmp_path)
            with sidecar(only_ipv6, tmp_path) as running:
                await eventually(lambda: has_address(kube, namespace, ADDRESS), timeout_s=30)
                await eventually(lambda: is_ready(llama), timeout_s=60)
                assert await asyncio.to_thread(get, only_ipv6, METRICS_PORT, "/metrics") == 200
                running.terminate()
                await asyncio.to_thread(running.wait)
        finally:
            # In a thread, for this loop carries its connections.
            assert await asyncio.to_thread(controller.end) == 0, controller.text()


def sidecar(only_ipv6, directory):
    """`uellm sidecar` with the arguments of a pod."""
    command = [str(Path(sys.executable).with_name("uellm")), "sidecar", f"--listen=:{SIDECAR_PORT}"]
    command += ["--engine=http://127.0.0.1:8001", f"--metrics-listen=:{METRICS_PORT}"]
    command += [f"--config={directory / 'sidecar.yaml'}", f"--engine-config={directory / 'engine.yaml'}"]
    return subprocess.Popen(only_ipv6.entering(command))


async def has_address(kube, namespace, address):
    """Give the pod the address, as a kubelet would; kwok gives every pod one of IPv4."""
    for pod in await kube.list(POD, namespace):
        if pod["status"].get("phase") == "Running" and pod["status"].get("podIP") != address:
            status = {"podIP": address, "podIPs": [{"ip": address}]}
            metadata = {name: pod["metadata"][name] for name in ("name", "namespace")}
            await kube.apply_status(
                {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status}, manager="uellm-tests"
            )
    pods = await kube.list(POD, namespace)
    return bool(pods) and all(pod["status"].get("podIP") == address for pod in pods)


async def is_ready(llama):
    return (await llama.condition("Ready"))[0] == "True"
