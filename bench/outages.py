"""What outages of the API server and of the operator cost, on a real API server with kwok's nodes.

    python bench/outages.py [--json FILE] [--services 100] [--seconds 2 30 120] [--only KIND ...] [--kills 20]

The operator reaches the API server through a proxy that fails in one way at a time:

    refused      connections are reset, and nothing listens
    black-holed  connections open, and nothing ever comes back
    500, 429     every request is answered so
    stalled      open watches go silent, everything else works
    killed       `kill -9` of the operator, 20 times during a rollout of all services

While it lasts, the replicas of one service are changed behind the proxy. An operator that ends is started again, as the
kubelet would do. Measured are

    WORKING     seconds from the end of the outage (of the stall: from the change) until the change is carried out
    STARTS      of the operator meanwhile
    STRAY       children too many or too few in the end, over all services
    LEFT        revisions that should have been removed, of the services that were changed

Targets: working within 60 s after an outage, and within 90 s of a stall; no stray child.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import random
import ssl
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import operator_scale as scale
import yaml
from aiohttp import web

from uellm.controller.resync import FIRST_S
from uellm.kube import CONFIGMAP, DEPLOYMENT, LLMSERVICE, PDB, SERVICE, Kube
from uellm.text import aligned
from uellm_devcluster import ControlPlane

WORKING_S, STALL_S = 60.0, 90.0
RESTART_S = 1.0
KINDS = ("refused", "black-holed", "500", "429", "stalled", "killed")
LABEL = "uellm.io/service"
IMAGES = [f"--{role}-image={role}:1" for role in ("sidecar", "launcher", "inspector")]


class Way:
    """An HTTP proxy to the API server that can fail."""

    def __init__(self, kubeconfig: Path) -> None:
        document = yaml.safe_load(kubeconfig.read_text())
        self._server = document["clusters"][0]["cluster"]["server"]
        self._tls = _tls(document)
        self.port = 0
        self._ok = asyncio.Event()
        self._fails_with: int | None = None
        self._stalled_before = 0.0
        self._runner: web.ServerRunner | None = None
        self._session: aiohttp.ClientSession | None = None

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Listen for as long as the block runs."""
        self._ok.set()
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as self._session:
            await self._listen()
            try:
                yield
            finally:
                await self._stop()

    async def fail(self, kind: str) -> None:
        """Fail from now on, until `recover`."""
        if kind == "refused":
            await self._stop()
        elif kind == "black-holed":
            self._ok.clear()
        elif kind == "stalled":
            self._stalled_before = time.monotonic()
        else:
            self._fails_with = int(kind)

    async def recover(self) -> None:
        """Work again. Connections that were black-holed stay so, as after a lost route; a stalled watch, too."""
        self._fails_with = None
        if self._runner is None:
            await self._listen()
        if not self._ok.is_set():
            self._ok = asyncio.Event()
            self._ok.set()

    async def _listen(self) -> None:
        self._runner = web.ServerRunner(web.Server(self._serve), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self.port or self._runner.addresses[0][1]

    async def _stop(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        ok, came_s = self._ok, time.monotonic()
        await ok.wait()
        if self._fails_with is not None:
            return self._failure()
        assert self._session is not None
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._session.request(
            request.method,
            self._server + request.path_qs,
            headers=headers,
            data=await request.read() or None,
            timeout=timeout,
        ) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await ok.wait()
                if self._fails_with is not None and "watch=" in request.query_string:
                    break
                if came_s < self._stalled_before and "watch=" in request.query_string:
                    await asyncio.Event().wait()
                await response.write(chunk)
            return response

    def _failure(self) -> web.Response:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": self._fails_with}
        headers = {"Retry-After": "1"} if self._fails_with == 429 else {}
        return web.json_response(status, status=self._fails_with, headers=headers)


_HOP_BY_HOP = {"connection", "host", "transfer-encoding", "content-length", "keep-alive"}


def _tls(kubeconfig: dict[str, Any]) -> ssl.SSLContext:
    cluster, user = kubeconfig["clusters"][0]["cluster"], kubeconfig["users"][0]["user"]
    context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    # The ssl module reads client certificates only from files.
    with tempfile.NamedTemporaryFile() as pem:
        pem.write(base64.b64decode(user["client-certificate-data"]) + base64.b64decode(user["client-key-data"]))
        pem.flush()
        context.load_cert_chain(pem.name)
    return context


class Operator:
    """`uellm controller` through the proxy, started again whenever it ends."""

    def __init__(self, kubeconfig: Path, log: Path) -> None:
        self._kubeconfig = kubeconfig
        self._log = log
        self.starts = 0
        self._process: asyncio.subprocess.Process | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep it running for as long as the block runs."""
        task = asyncio.create_task(self._keep())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self._end()

    def kill(self) -> None:
        """`kill -9`."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def _end(self) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.terminate()
            await asyncio.wait_for(self._process.wait(), 15)

    async def _keep(self) -> None:
        with self._log.open("ab") as output:
            while True:
                self.starts += 1
                command = [str(Path(sys.executable).with_name("uellm")), "controller", "--health-listen=127.0.0.1:0"]
                command += ["--namespace=default", *IMAGES]
                environment = {**os.environ, "KUBECONFIG": str(self._kubeconfig)}
                self._process = await asyncio.create_subprocess_exec(
                    *command, env=environment, stdout=output, stderr=output
                )
                await self._process.wait()
                await asyncio.sleep(RESTART_S)


@dataclass(frozen=True)
class Outage:
    """What one outage cost."""

    kind: str
    seconds: float
    working_s: float
    starts: int
    stray: int
    left: int

    @property
    def missed(self) -> bool:
        """Whether a target was missed."""
        return self.working_s > (STALL_S if self.kind == "stalled" else WORKING_S) or self.stray > 0


class Bench:
    """One cluster with its services."""

    def __init__(self, kube: Kube, way: Way, operator: Operator, services: int) -> None:
        self._kube = kube
        self._way = way
        self._operator = operator
        self._services = services
        self._changes = 0

    async def outage(self, kind: str, seconds: float) -> Outage:
        """The API server is away for so long; a stall has no end of its own."""
        starts, stalls = self._operator.starts, kind == "stalled"
        if stalls:
            await asyncio.sleep(2 * FIRST_S)  # the full list soon after a start would hide it
        await self._way.fail(kind)
        await asyncio.sleep(0 if stalls else seconds / 2)
        name, replicas = await self._scale()
        await asyncio.sleep(0 if stalls else seconds / 2)
        await self._way.recover()
        since_s = time.monotonic()
        await scale.until(lambda: self._is_scaled(name, replicas))
        working_s = time.monotonic() - since_s
        return Outage(kind, seconds, working_s, self._operator.starts - starts, await self._stray(), 0)

    async def kills(self, times: int) -> Outage:
        """The operator dies again and again during a rollout of every service."""
        starts, draw = self._operator.starts, random.Random(times)
        for index in range(self._services):
            document = self._document(index)
            document["spec"]["engine"] = {"args": ["--seed=7"]}
            await self._kube.apply(document, manager=scale.MANAGER)
        for _ in range(times):
            await asyncio.sleep(draw.uniform(0.5, 6.0))
            self._operator.kill()
        since_s = time.monotonic()
        await scale.until(self._all_rolled)
        working_s = time.monotonic() - since_s
        return Outage("killed", 0, working_s, self._operator.starts - starts, await self._stray(), await self._left())

    def _document(self, index: int) -> dict[str, Any]:
        return scale.service(index)

    async def _scale(self) -> tuple[str, int]:
        self._changes += 1
        index, replicas = self._changes % self._services, 2
        document = self._document(index)
        document["spec"]["replicas"] = replicas
        await self._kube.apply(document, manager=scale.MANAGER)
        return f"service-{index}-engine", replicas

    async def _is_scaled(self, name: str, replicas: int) -> bool:
        deployment = await self._kube.get(DEPLOYMENT, name, "default")
        return deployment is not None and deployment["spec"]["replicas"] == replicas

    async def _all_rolled(self) -> bool:
        rolled = [
            "--seed=7" in json.dumps((await self._revision_of(each)) or {})
            for each in await self._kube.list(DEPLOYMENT, "default")
        ]
        return len(rolled) == self._services and all(rolled)

    async def _revision_of(self, deployment: dict[str, Any]) -> dict[str, Any] | None:
        name = deployment["spec"]["template"]["metadata"]["labels"].get("uellm.io/revision", "")
        service = deployment["metadata"]["labels"][LABEL]
        return await self._kube.get(CONFIGMAP, f"{service}-{name}", "default")

    async def _stray(self) -> int:
        """Services whose children of a kind are not one."""
        stray = 0
        for kind in (DEPLOYMENT, SERVICE, PDB):
            found = Counter(
                each["metadata"]["labels"][LABEL]
                for each in await self._kube.list(kind, "default", label_selector=LABEL)
            )
            names = [each["metadata"]["name"] for each in await self._kube.list(LLMSERVICE, "default")]
            stray += sum(found[name] != 1 for name in names) + len(found.keys() - set(names))
        return stray

    async def _left(self) -> int:
        """Revisions beyond those of the Deployment's history."""
        found = Counter(
            each["metadata"]["labels"][LABEL]
            for each in await self._kube.list(CONFIGMAP, "default", label_selector=LABEL)
            if each.get("immutable")
        )
        return sum(max(0, count - 4) for count in found.values())


async def measure(args: argparse.Namespace, plane: ControlPlane, report: Callable[[Outage], None]) -> None:
    """All outages, one after the other."""
    way = Way(plane.kubeconfig)
    async with await Kube.connect(kubeconfig=str(plane.kubeconfig)) as kube, way.opened():
        await scale.prepare(kube, args.nodes, 8)
        await scale.each_of(kube.create(scale.service(index)) for index in range(args.services))
        far = plane.kubeconfig.with_name("outages.kubeconfig")
        far.write_text(yaml.safe_dump(_through(way.port)))
        operator = Operator(far, args.log)
        async with operator.running():
            await scale.until(lambda: deployed(kube, args.services), every_s=1.0)
            bench = Bench(kube, way, operator, args.services)
            for kind in args.only:
                if kind == "killed":
                    report(await bench.kills(args.kills))
                    continue
                for seconds in [0.0] if kind == "stalled" else args.seconds:
                    report(await bench.outage(kind, seconds))


async def deployed(kube: Kube, services: int) -> bool:
    """Whether every service has its Deployment."""
    return len(await kube.list(DEPLOYMENT, "default", label_selector=LABEL)) >= services


def _through(port: int) -> dict[str, Any]:
    """A kubeconfig without credentials: the proxy has them."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "way", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "way", "user": {}}],
        "contexts": [{"name": "way", "context": {"cluster": "way", "user": "way"}}],
        "current-context": "way",
    }


def table(outages: list[Outage]) -> str:
    """The table that is printed."""
    lines = [["OUTAGE", "FOR", "WORKING", "STARTS", "STRAY", "LEFT"]]
    for each in outages:
        lasted = f"{each.seconds:g} s" if each.seconds else "-"
        lines.append([each.kind, lasted, f"{each.working_s:.1f} s", str(each.starts), str(each.stray), str(each.left)])
    return "\n".join(aligned(lines))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--services", type=int, default=100)
    parser.add_argument("--nodes", type=int, default=40)
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.0, 30.0, 120.0])
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="the operator's log goes to this file")
    args = parser.parse_args()
    found: list[Outage] = []

    def report(outage: Outage) -> None:
        found.append(outage)
        print(table(found).splitlines()[-1], file=sys.stderr, flush=True)
        if args.json:
            figures = [{**asdict(each), "missed": each.missed} for each in found]
            args.json.write_text(json.dumps({"benchmark": "outages", "results": figures}, indent=2) + "\n")

    with ControlPlane(kwok_nodes=args.nodes) as plane:
        asyncio.run(measure(args, plane, report))
    print(table(found))
    return int(any(each.missed for each in found))


if __name__ == "__main__":
    sys.exit(main())
