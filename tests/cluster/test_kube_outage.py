"""A watch over a connection that fails in different ways loses no change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from uellm.kube import CONFIGMAP, Kube


class Way:
    """A TCP forwarder to the API server that can be cut or silenced."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = _set_event()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Stop listening, and reset open connections."""
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    def silence(self) -> None:
        """Send nothing more over open connections, as after a lost route. New connections work."""
        self._open.clear()
        self._open = _set_event()

    async def close(self) -> None:
        await self.refuse()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task, opened = asyncio.current_task(), self._open
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            self._writers |= {writer, far_writer}
            try:
                await asyncio.gather(_pipe(reader, far_writer, opened), _pipe(far_reader, writer, opened))
            finally:
                self._writers -= {writer, far_writer}
                writer.close()
                far_writer.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, opened: asyncio.Event) -> None:
    while data := await reader.read(65536):
        await opened.wait()
        writer.write(data)
        await writer.drain()
    writer.close()


def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@pytest.fixture
async def way(kubeconfig: str) -> AsyncIterator[Way]:
    server = urlsplit(_read(kubeconfig)["clusters"][0]["cluster"]["server"])
    forwarder = Way(server.hostname, server.port)
    await forwarder.listen()
    yield forwarder
    await forwarder.close()


@pytest.fixture
async def far(kubeconfig: str, way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kube]:
    """A client that connects through the forwarder."""
    monkeypatch.setattr("uellm.kube.watch.LONGEST_DELAY_S", 0.2)
    document = _read(kubeconfig)
    document["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{way.port}"
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(document))
    async with await Kube.connect(kubeconfig=str(path)) as client:
        yield client


def _read(kubeconfig: str) -> dict:
    return yaml.safe_load(Path(kubeconfig).read_text())


class Mirror:
    """The state that a consumer of the watch has built."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self.objects: dict[str, dict] = {}
        self._task = asyncio.create_task(self._follow(kube, namespace))

    async def _follow(self, kube: Kube, namespace: str) -> None:
        async for event in kube.watch(CONFIGMAP, namespace=namespace, silence_s=1.0, session_s=3.0):
            name = event.object.get("metadata", {}).get("name", "")
            if event.type == "DELETED":
                self.objects.pop(name, None)
            elif event.type != "SYNCED":
                self.objects[name] = event.object

    async def equals(self, kube: Kube, namespace: str) -> bool:
        return self.objects == {obj["metadata"]["name"]: obj for obj in await kube.list(CONFIGMAP, namespace)}

    def stop(self) -> None:
        self._task.cancel()


@pytest.fixture
async def mirror(far: Kube, kube: Kube, namespace: str, eventually) -> AsyncIterator[Mirror]:
    for name in ("kept", "changed", "deleted"):
        await kube.create(config_map(namespace, name, "before"))
    following = Mirror(far, namespace)
    await eventually(lambda: following.equals(kube, namespace))
    yield following
    following.stop()


def config_map(namespace: str, name: str, value: str) -> dict:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"x": value}}


async def change_all(kube: Kube, namespace: str) -> None:
    await kube.apply(config_map(namespace, "changed", "after"), manager="uellm-tests")
    await kube.delete(CONFIGMAP, "deleted", namespace)
    await kube.create(config_map(namespace, "new", "after"))


async def test_after_a_refused_connection_the_watch_continues_where_it_was(kube, namespace, way, mirror, eventually):
    await way.refuse()
    await change_all(kube, namespace)
    await way.listen()
    await eventually(lambda: mirror.equals(kube, namespace))


async def test_a_silent_connection_is_replaced_and_missed_changes_are_found(kube, namespace, way, mirror, eventually):
    way.silence()
    await change_all(kube, namespace)
    assert not await mirror.equals(kube, namespace)
    await eventually(lambda: mirror.equals(kube, namespace))


async def test_connections_cut_again_and_again_lose_nothing(kube, namespace, way, mirror, eventually):
    for value in map(str, range(5)):
        await kube.apply(config_map(namespace, "changed", value), manager="uellm-tests")
        await way.refuse()
        await way.listen()
    await change_all(kube, namespace)
    await eventually(lambda: mirror.equals(kube, namespace))
