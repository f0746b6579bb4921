"""`uellm gateway` as a process: arguments, HTTPS, draining, restarts, and many clients that leave nothing behind."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import ssl
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import aiohttp
import pytest
import yaml

from helpers.fake_engine import FakeEngine, eventually
from uellm.cli.main import main
from uellm.http import RequestLimits

ONLY = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in set("numpy kopf kubernetes torch httpx aiohttp multidict yarl uvloop".split()):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import uellm.cli.gateway, uellm.gateway.static_view
assert not {m for m in sys.modules if m.startswith(("uellm.sidecar", "uellm.planner", "uellm.reconcile"))}
"""


def test_with_a_file_it_needs_no_package_for_the_cluster_and_nothing_of_the_sidecar() -> None:
    ran = subprocess.run([sys.executable, "-c", ONLY], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (None, "services.yaml: No such file or directory"),
        ("services: [{name: a, replica: []}]", "services.yaml: services.0.replica: Extra inputs are not permitted"),
        ("a: [", "services.yaml: not YAML"),
        (
            "services: [{name: a, replicas: [b]}]",
            "services.yaml: replicas of default/a: 'b' is not HOST:PORT, such as 127.0.0.1:8000",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, monkeypatch, capsys, file, message) -> None:
    monkeypatch.chdir(tmp_path)
    if file is not None:
        Path("services.yaml").write_text(file)
    assert main(["gateway", "--listen", "127.0.0.1:0", "--static", "services.yaml"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"uellm gateway: {message}"


@pytest.mark.parametrize("origin", ["https://chat.example.com/", "chat.example.com", "https://Chat.example.com", ""])
def test_an_origin_that_no_browser_would_send_is_refused(capsys, origin) -> None:
    command = ["gateway", "--listen", "127.0.0.1:0", "--allowed-origins", "*", f"--allowed-origins={origin}"]
    assert main(command) == 2
    message = "is no origin: give scheme, host and port in lower case, such as https://chat.example.com, or *"
    assert capsys.readouterr().err.splitlines()[-1] == f"uellm gateway: --allowed-origins: {origin!r} {message}"


def test_a_certificate_that_cannot_be_used_is_named(tmp_path, capsys) -> None:
    (tmp_path / "services.yaml").write_text("services: []")
    command = ["gateway", "--listen", "127.0.0.1:0", "--static", str(tmp_path / "services.yaml"), "--tls", "/nowhere"]
    assert main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "uellm gateway: /nowhere: tls.crt and tls.key there cannot be used (No such file or directory)"


async def start(tmp_path: Path, *ports: int, listen: str = "127.0.0.1:0", **services: int) -> tuple[Process, int]:
    """The process in front of engines, and its port."""
    described = services or {"llama": ports[0]}
    document = [{"name": name, "replicas": [f"127.0.0.1:{port}"]} for name, port in described.items()]
    file = tmp_path / "services.yaml"
    file.write_text(yaml.safe_dump({"services": document}))
    command = (sys.executable, "-m", "uellm.cli.main", "gateway", "--listen", listen, "--static", str(file))
    process = await asyncio.create_subprocess_exec(*command, "--drain-seconds", "10", stdout=PIPE, stderr=PIPE)
    line = json.loads(await process.stderr.readline())
    return process, int(line["message"].split()[3].rstrip(","))


BODY = b'{"model":"llama"}'


async def test_after_sigterm_open_streams_end_whole_and_new_requests_are_served_for_a_while(engines, tmp_path) -> None:
    engine = await engines()
    engine.script = FakeEngine.stream(b"data: [DONE]\n\n", hold=True)
    process, port = await start(tmp_path, engine.port)
    url = f"http://127.0.0.1:{port}/v1/completions"
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession() as client, client.post(url, data=BODY, headers=headers) as open_stream:
        assert await open_stream.content.readuntil(b"\n\n") == b"data: [DONE]\n\n"
        process.send_signal(signal.SIGTERM)
        engine.script = FakeEngine.echo
        async with client.post(url, data=BODY, headers=headers) as late:
            assert late.status == 200
            assert await late.read() == BODY
        engine.received[0].go_on.set()
        assert await open_stream.read() == b""
    output, _ = await asyncio.wait_for(process.communicate(), 15)
    assert process.returncode == 0
    assert [json.loads(line)["outcome"] for line in output.splitlines()] == ["completed", "completed"]


async def test_a_gateway_that_was_killed_is_replaced_on_the_same_port_and_knows_everything(engines, tmp_path) -> None:
    engine = await engines()
    process, port = await start(tmp_path, engine.port)
    process.kill()
    await process.communicate()
    process, port = await start(tmp_path, engine.port, listen=f"127.0.0.1:{port}")
    async with aiohttp.ClientSession() as client, client.get(f"http://127.0.0.1:{port}/v1/models") as response:
        assert [model["id"] for model in (await response.json())["data"]] == ["llama"]
    process.send_signal(signal.SIGINT)
    await asyncio.wait_for(process.communicate(), 15)
    assert process.returncode == 0


async def test_while_it_drains_it_is_not_ready_and_then_refuses(launch, engines) -> None:
    harness = await launch(grace_s=5.0, lame_duck_s=0.05)
    engine = await engines()
    engine.script = FakeEngine.on_word
    harness.serve("llama", engine.port)
    waiting = harness.ask()
    received = await engine.arrivals.get()
    stopping = asyncio.create_task(harness.gateway.stop(linger=True))
    await eventually(lambda: harness.gateway.drain.draining)
    async with harness.client.get(harness.management("/readyz")) as response:
        assert response.status == 503
    await eventually(lambda: harness.gateway.drain.refusing)
    async with harness.post() as response:
        assert response.status == 503
        assert response.headers["x-uellm-outcome"] == "draining"
    received.go_on.set()
    await stopping
    assert (await waiting)[0] == 200


def certificate(directory: Path, name: str) -> None:
    """A key and a certificate for 127.0.0.1 that signs itself."""
    directory.mkdir(exist_ok=True)
    files = ["-keyout", str(directory / "tls.key"), "-out", str(directory / "tls.crt")]
    subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    subprocess.run(["openssl", "req", "-x509", *key, *files, *subject], check=True, capture_output=True)


async def test_https_with_a_certificate_that_is_renewed(launch, engines, tmp_path) -> None:
    certificate(tmp_path / "tls", "one")
    harness = await launch(tls=tmp_path / "tls")
    engine = await engines()
    engine.script = FakeEngine.stream(b"data: 1\n\n", b"data: [DONE]\n\n")
    harness.serve("llama", engine.port)
    url = f"https://127.0.0.1:{harness.gateway.port}/v1/completions"

    async def ask() -> bytes:
        trusting = ssl.create_default_context(cafile=str(tmp_path / "tls" / "tls.crt"))
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting)) as client,
            client.post(url, data=BODY, headers={"Content-Type": "application/json"}) as response,
        ):
            return await response.read()

    assert await ask() == b"data: 1\n\ndata: [DONE]\n\n"
    certificate(tmp_path / "tls", "two")
    assert harness.gateway._certificate.renew()
    assert await ask() == b"data: 1\n\ndata: [DONE]\n\n"
    (tmp_path / "tls" / "tls.crt").write_text("broken")
    assert not harness.gateway._certificate.renew()


async def test_a_client_that_leaves_over_https_ends_its_request(launch, engines, tmp_path) -> None:
    certificate(tmp_path / "tls", "one")
    harness = await launch(tls=tmp_path / "tls")
    engine = await engines()
    engine.script = FakeEngine.on_word
    harness.serve("llama", engine.port)
    trusting = ssl.create_default_context(cafile=str(tmp_path / "tls" / "tls.crt"))
    _, writer = await asyncio.open_connection("127.0.0.1", harness.gateway.port, ssl=trusting)
    writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)
    received = await engine.arrivals.get()
    writer.close()
    await asyncio.wait_for(received.left.wait(), 1.0)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
async def test_it_listens_and_forwards_over_ipv6(launch) -> None:
    from uellm.gateway.catalog import Service, ServiceKey
    from uellm.gateway.replicas import ReplicaAddress
    from uellm.proxying.process import Address

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(BODY)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    server = await asyncio.start_server(answer, "::1", 0)
    harness = await launch(listen=Address("::1", 0))
    harness.gateway.fleet.put(Service(ServiceKey("default", "llama"), ("llama",)))
    port = server.sockets[0].getsockname()[1]
    harness.gateway.fleet.place(ServiceKey("default", "llama"), [ReplicaAddress("::1", port)])
    url = f"http://[::1]:{harness.gateway.port}/v1/completions"
    async with harness.client.post(url, data=BODY, headers={"Content-Type": "application/json"}) as response:
        assert await response.read() == b"{}"
    server.close()


async def test_the_gateways_own_keys_are_asked_for_in_addition(launch, engines, tmp_path) -> None:
    (tmp_path / "key").write_text("door-key\n")
    harness = await launch(keys=tmp_path)
    engine = await engines()
    harness.serve("llama", engine.port)
    for key, status in (("", 401), ("Bearer x", 401), ("Bearer door-key", 200)):
        async with harness.post(**({"Authorization": key} if key else {})) as response:
            assert response.status == status
    async with harness.client.get(harness.url("/v1/models")) as response:
        assert response.status == 401
    assert len(engine.received) == 1


async def test_slow_and_silent_clients_and_those_that_leave_leave_nothing_behind(launch, engines) -> None:
    harness = await launch(limits=RequestLimits(header_deadline_s=1.0, body_deadline_s=1.0, idle_s=1.0, linger_s=0.5))
    engine = await engines()
    harness.serve("llama", engine.port)
    slow = [b"", b"POST / HT", b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99\r\n\r\n{"]
    opened = [await harness.connect() for _ in range(150)]
    for number, (_, writer) in enumerate(opened):
        writer.write(slow[number % len(slow)])
    engine.script = FakeEngine.stream(b"data: 1\n\n", hold=True)
    for _ in range(10):
        leaving = [harness.ask() for _ in range(20)]
        await eventually(lambda: sum(not received.left.is_set() for received in engine.received) == 20)
        for each in leaving:
            each.cancel()
        await eventually(lambda: all(received.left.is_set() for received in engine.received))
    engine.script = FakeEngine.echo
    assert (await harness.ask())[0] == 200
    await harness.client.close()
    await eventually(lambda: not harness.connections() if hasattr(harness, "connections") else True)
    await eventually(lambda: not harness.gateway.connections)
    gateway = harness.gateway
    assert (gateway.drain.active, gateway.bodies.held_bytes, gateway.holding.held_bytes) == (0, 0, 0)
    (service,) = gateway.fleet.catalog.services
    router = gateway.fleet.replicas(service)._router
    assert [len(books.outstanding) for books in router._replicas.values()] == [0]
    assert harness.outcomes()["client_left"] == 200
    for _, writer in opened:
        writer.close()
