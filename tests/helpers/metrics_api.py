"""An API of metrics on the test's machine, as the API server serves it to the HPA controller."""

from __future__ import annotations

import json
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from uellm_devcluster.demo.shell import Shell
from uellm_devcluster.pki import Authority

ValuesOfPods = Callable[[str, str, str], Awaitable[dict[str, float]]]
"""Of a namespace, a selector of pods and a metric: the value of each pod that has it, by name."""


def register(shell: Shell, directory: Path, group: str, version: str, *, namespace: str, port: int) -> None:
    """Let the API server send requests for these metrics to a port of its own machine."""
    service = {"name": "metrics-api", "namespace": namespace, "port": port}
    documents = [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": service["name"], "namespace": namespace},
            "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]},
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"{version}.{group}"},
            "spec": {
                "group": group,
                "version": version,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "service": service,
                "insecureSkipTLSVerify": True,
            },
        },
    ]
    path = directory / "metrics-api.json"
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": documents}))
    shell.run(f"kubectl apply --server-side -f {path}")


class CustomMetrics:
    """A stand-in for an adapter such as Prometheus Adapter: the API `custom.metrics.k8s.io` for metrics of pods."""

    GROUP, VERSION = "custom.metrics.k8s.io", "v1beta2"

    def __init__(self, metric: str, values: ValuesOfPods) -> None:
        self._metric = metric
        self._values = values
        self.selectors: list[str] = []
        """By which pods were asked for."""

    async def start(self, directory: Path) -> int:
        """Serve by HTTPS; the port."""
        pair = Authority("metrics").server("metrics", names=["localhost"], addresses=["127.0.0.1"])
        pair.write(directory, "metrics-api")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(directory / "metrics-api.crt", directory / "metrics-api.key")
        application = web.Application()
        root = f"/apis/{self.GROUP}/{self.VERSION}"
        application.router.add_get(root, self._resources)
        application.router.add_get(root + "/namespaces/{namespace}/pods/*/{metric}", self._metrics)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context).start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _resources(self, request: web.Request) -> web.Response:
        resource = {"name": f"pods/{self._metric}", "namespaced": True, "kind": "MetricValueList", "verbs": ["get"]}
        group_version = f"{self.GROUP}/{self.VERSION}"
        found = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": [resource]}
        return web.json_response(found)

    async def _metrics(self, request: web.Request) -> web.Response:
        namespace, metric = request.match_info["namespace"], request.match_info["metric"]
        self.selectors.append(request.query["labelSelector"])
        values = await self._values(namespace, self.selectors[-1], metric)
        items: list[dict[str, Any]] = [
            {
                "describedObject": {"kind": "Pod", "namespace": namespace, "name": name, "apiVersion": "v1"},
                "metric": {"name": metric},
                "timestamp": "2026-01-01T00:00:00Z",
                "value": f"{round(value * 1000)}m",
            }
            for name, value in values.items()
        ]
        kind = {"kind": "MetricValueList", "apiVersion": f"{self.GROUP}/{self.VERSION}", "metadata": {}}
        return web.json_response({**kind, "items": items})
