"""The real Envoy, with the configuration that the real Envoy Gateway makes of Gateway API objects.

Envoy Gateway's own translator writes what its control plane would send. Here Envoy reads that from a file, and the
addresses of the backend's pods are put in the place of its Service's.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from uellm_devcluster.binaries import ensure
from uellm_devcluster.local import free_ports

GATEWAY = {"name": "public", "namespace": "ingress"}
_CLASS = {
    "apiVersion": "gateway.networking.k8s.io/v1",
    "kind": "GatewayClass",
    "metadata": {"name": "envoy"},
    "spec": {"controllerName": "gateway.envoyproxy.io/gatewayclass-controller"},
}
_LISTENER = {"name": "http", "protocol": "HTTP", "port": 10080, "allowedRoutes": {"namespaces": {"from": "All"}}}
_GATEWAY = {
    "apiVersion": "gateway.networking.k8s.io/v1",
    "kind": "Gateway",
    "metadata": GATEWAY,
    "spec": {"gatewayClassName": "envoy", "listeners": [_LISTENER]},
}
Document = dict[str, Any]


def translated(documents: Sequence[Document], directory: Path) -> dict[str, Document]:
    """Envoy Gateway's translation of a Gateway and these documents: by kind, its last listener, route and cluster."""
    source = directory / "gateway.yaml"
    source.write_text(yaml.safe_dump_all([_CLASS, _GATEWAY, *documents]))
    command = [str(ensure({"egctl"}) / "egctl"), "x", "translate", "--from", "gateway-api", "--to", "xds"]
    done = subprocess.run(
        [*command, "--type", "all", "--output", "json", "--file", str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (dump,) = json.loads(done.stdout)["xds"].values()
    parts = {each["@type"].rpartition(".")[2]: each for each in dump["configs"]}
    return {
        "listener": parts["ListenersConfigDump"]["dynamicListeners"][-1]["activeState"]["listener"],
        "routes": parts["RoutesConfigDump"]["dynamicRouteConfigs"][-1]["routeConfig"],
        "cluster": parts["ClustersConfigDump"]["dynamicActiveClusters"][-1]["cluster"],
    }


def static(parts: dict[str, Document], ports: Sequence[int], listen: int) -> Document:
    """A configuration for a file: Envoy on port `listen`, and the backend's pods on `ports`, all on loopback."""
    listener, cluster = parts["listener"], parts["cluster"]
    listener["address"] = _address(listen)
    manager = listener["defaultFilterChain"]["filters"][-1]["typedConfig"]
    del manager["rds"]
    manager["routeConfig"] = parts["routes"]
    del parts["routes"]["@type"]
    del cluster["edsClusterConfig"]
    pods = [{"endpoint": {"address": _address(port)}, "loadBalancingWeight": 1} for port in ports]
    locality = {"lbEndpoints": pods, "loadBalancingWeight": 1, "locality": {"region": "here"}}
    cluster |= {"type": "STATIC", "loadAssignment": {"clusterName": cluster["name"], "endpoints": [locality]}}
    for part in (listener, cluster):
        del part["@type"]
    return {"staticResources": {"listeners": [listener], "clusters": [cluster]}}


def _address(port: int) -> Document:
    return {"socketAddress": {"address": "127.0.0.1", "portValue": port}}


@asynccontextmanager
async def running(parts: dict[str, Document], ports: Sequence[int], directory: Path) -> AsyncIterator[int]:
    """A running Envoy; yields its port."""
    listen = free_ports("envoy")["envoy"]
    config, log = directory / "envoy.json", directory / "envoy.log"
    config.write_text(json.dumps(static(parts, ports, listen)))
    command = [str(ensure({"envoy"}) / "envoy"), "--config-path", str(config), "--concurrency", "1"]
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(*command, "--use-dynamic-base-id", stdout=output, stderr=output)
    try:
        await _listening(listen, process)
        yield listen
    except AssertionError as error:
        error.add_note(log.read_text()[-4000:])
        raise
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _listening(port: int, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(60), aiohttp.ClientSession() as client:
        while True:
            assert process.returncode is None
            try:
                async with client.get(f"http://127.0.0.1:{port}/"):
                    return
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)
