"""The cluster's authority is replaced while we run: TLS on real sockets, with certificates of two authorities."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from uellm.kube import CONFIGMAP, SYNCED, Kube, Unavailable, watch
from uellm_devcluster.pki import Authority, Pair

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def served(directory: Path, pair: Pair, handler: Handler, port: int = 0) -> AsyncIterator[int]:
    """A server with this certificate, on this port."""
    pair.write(directory, "server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.crt", directory / "server.key")
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def server_of(authority: Authority) -> Pair:
    return authority.server("kube-apiserver", names=[], addresses=["127.0.0.1"])


def kubeconfig(directory: Path, port: int, authority: Authority) -> str:
    """As in a pod, the certificate of the authority is in a file of its own."""
    (directory / "ca.crt").write_bytes(authority.pair.certificate)
    cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(directory / "ca.crt")}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "c", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        "current-context": "c",
    }
    (directory / "kubeconfig").write_text(yaml.safe_dump(document))
    return str(directory / "kubeconfig")


async def version(_: web.Request) -> web.StreamResponse:
    return web.json_response({"gitVersion": "v1"})


async def test_a_new_authority_is_trusted_as_soon_as_its_certificate_is_in_the_file_and_the_old_one_no_more(
    tmp_path,
) -> None:
    old, new = Authority("old"), Authority("new")
    async with served(tmp_path, server_of(old), version) as port:
        config = kubeconfig(tmp_path, port, old)
        kube = await Kube.connect(kubeconfig=config)
        assert await kube.version() == "v1"
    async with kube:
        async with served(tmp_path, server_of(new), version, port):
            with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
                await kube.version()
            kubeconfig(tmp_path, port, new)
            assert await asyncio.gather(*(kube.version() for _ in range(3))) == ["v1"] * 3
        async with served(tmp_path, server_of(old), version, port):
            with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
                await kube.version()


async def test_a_certificate_that_cannot_be_read_again_leaves_the_failure(tmp_path) -> None:
    async with served(tmp_path, server_of(Authority("other")), version) as port:
        config = kubeconfig(tmp_path, port, Authority("ours"))
        async with await Kube.connect(kubeconfig=config) as kube:
            os.unlink(config)
            with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
                await kube.version()


async def test_a_watch_goes_on_after_the_authority_has_changed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(watch, "FIRST_DELAY_S", 0.0001)
    monkeypatch.setattr(watch, "LONGEST_DELAY_S", 0.01)

    async def cluster(request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            document: dict[str, Any] = {"kind": "ConfigMapList", "metadata": {"resourceVersion": "10"}, "items": []}
            return web.json_response(document)
        response = web.StreamResponse()
        await response.prepare(request)
        metadata = {"name": "a", "namespace": "default", "resourceVersion": "11"}
        await response.write(b'{"type": "ADDED", "object": ' + web.json_response({"metadata": metadata}).body + b"}\n")
        await asyncio.Event().wait()
        return response

    async def empty(request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            return await cluster(request)
        return web.Response()

    old, new = Authority("old"), Authority("new")
    async with served(tmp_path, server_of(old), empty) as port:
        kube = await Kube.connect(kubeconfig=kubeconfig(tmp_path, port, old))
        events = kube.watch(CONFIGMAP, namespace="default")
        assert (await anext(events)).type == SYNCED
    async with kube, aclosing(events), served(tmp_path, server_of(new), cluster, port):
        following = asyncio.ensure_future(anext(events))
        kubeconfig(tmp_path, port, new)
        assert (await asyncio.wait_for(following, 10)).object["metadata"]["name"] == "a"
