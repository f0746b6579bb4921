"""The kubelet's probes of the engine, over real sockets: an engine and a sidecar played by small servers."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from uellm.launcher import probes


class Peer:
    """A server on loopback that answers every GET with a status and a document, which a test may change."""

    def __init__(self) -> None:
        self.status = 200
        self.document: dict = {}
        peer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(peer.document).encode()
                self.send_response(peer.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = ("127.0.0.1", self.server.server_address[1])
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def engine() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture
def sidecar() -> Iterator[Peer]:
    peer = Peer()
    peer.document = {"engine": "ready", "hanging": False}
    yield peer
    peer.close()


@pytest.fixture
def nobody() -> Iterator[tuple[str, int]]:
    """An address at which nobody listens: bound, so that nobody else gets it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()


@pytest.fixture
def served(engine, sidecar) -> Iterator[ThreadingHTTPServer]:
    server = probes.listen(0, engine.address, sidecar.address)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def get(server: ThreadingHTTPServer, path: str, host: str = "127.0.0.1") -> tuple[int, dict]:
    connection = http.client.HTTPConnection(host, server.server_address[1], timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/startup", "/ready", "/live"])
def test_a_healthy_engine_passes_every_probe(served, path):
    assert get(served, path)[0] == 200


@pytest.mark.parametrize("path", ["/startup", "/ready", "/live"])
def test_an_unhealthy_engine_fails_every_probe_with_the_reason(served, engine, path):
    engine.status = 503
    assert get(served, path) == (503, {"error": "the engine's /health: status 503"})


def test_an_engine_that_does_not_listen_yet_has_not_started(sidecar, nobody):
    assert probes.objection("/startup", nobody, sidecar.address) == "the engine's /health: no answer"


def test_an_engine_that_the_sidecar_finds_hanging_is_not_live(served, sidecar):
    sidecar.status, sidecar.document = 503, {"engine": "unhealthy", "hanging": True}
    status, answer = get(served, "/live")
    assert status == 503
    assert answer["error"].startswith("the engine hangs")
    assert get(served, "/ready")[0] == 200


def test_a_missing_or_unhealthy_sidecar_does_not_restart_the_engine(engine, sidecar, nobody):
    assert probes.objection("/live", engine.address, nobody) == ""
    sidecar.status, sidecar.document = 500, {}
    assert probes.objection("/live", engine.address, sidecar.address) == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_it_listens_on_both_families(served, host):
    if host == "::1" and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    assert get(served, "/live", host)[0] == 200


def test_another_path_is_refused(served):
    assert get(served, "/metrics")[0] == 404


def test_idle_peers_do_not_use_up_the_threads(served):
    # Not by monkeypatch, which would put the former one back while a request still holds its place in this one.
    served._places = threading.BoundedSemaphore(1)
    address = ("127.0.0.1", served.server_address[1])
    with (
        socket.create_connection(address, timeout=10) as first,
        socket.create_connection(address, timeout=10) as second,
    ):
        # The second finds no place, and is closed at once; the first is still there.
        assert second.recv(1) == b""
        first.sendall(b"GET /live HTTP/1.0\r\n\r\n")
        assert first.recv(12) == b"HTTP/1.0 200"
