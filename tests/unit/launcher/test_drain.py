from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from uellm import drain_token
from uellm.launcher.__main__ import main
from uellm.launcher.drain import drain


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[BaseHTTPRequestHandler], None]], str]]:
    """Start a server on loopback with the given reaction to POST; returns the URL."""
    servers: list[HTTPServer] = []

    def start(answer: Callable[[BaseHTTPRequestHandler], None]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                answer(self)

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/uellm/drain"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def reply(status: int) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def test_drain_posts_and_waits_for_the_answer(serve, monkeypatch, tmp_path):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # a proxy that would refuse: loopback must not use it
    paths = []
    url = serve(lambda handler: (paths.append(handler.path), reply(200)(handler)))
    assert main(["--drain", url, "--placement", str(tmp_path / "placement.json")]) == 0
    assert paths == ["/uellm/drain"]


def test_the_hook_shows_a_new_secret_that_it_leaves_where_the_sidecar_reads_it(serve, tmp_path):
    given = []
    url = serve(lambda handler: (given.append(handler.headers[drain_token.HEADER]), reply(200)(handler)))
    for _ in range(2):
        assert drain(url, tmp_path) == 0
        assert (tmp_path / drain_token.FILE).read_text() == given[-1]
    assert len(set(given)) == 2


def test_where_no_secret_can_be_left_the_sidecar_decides(serve, tmp_path, capfd):
    assert drain(serve(reply(403)), tmp_path / "missing") == 1
    assert "status 403" in capfd.readouterr().err


def test_a_sidecar_that_is_gone_needs_no_drain(serve, unused_port, tmp_path):
    assert drain(f"http://127.0.0.1:{unused_port}/uellm/drain", tmp_path) == 0


def test_a_sidecar_that_ends_while_draining_is_drained(serve, tmp_path):
    assert drain(serve(lambda handler: handler.connection.close()), tmp_path) == 0


def test_a_refusal_is_reported(serve, capfd, tmp_path):
    assert drain(serve(reply(500)), tmp_path) == 1
    assert "status 500" in capfd.readouterr().err


def test_a_drain_that_does_not_end_is_given_up(serve, capfd, tmp_path):
    released = threading.Event()
    url = serve(lambda handler: (released.wait(10), reply(200)(handler)))
    assert drain(url, tmp_path, timeout_s=0.05) == 1
    released.set()
    assert "no answer in 0.05 s" in capfd.readouterr().err


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A port that nobody listens on: bound, so that nobody else gets it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
