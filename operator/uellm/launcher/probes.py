"""Answers the kubelet's probes of the engine, which listens on loopback, out of the kubelet's reach.

The engine's parent does it, not the sidecar: a sidecar that crashes is no reason to restart a healthy engine.

GET /startup, /ready   200 once the engine's /health is 200
GET /live              the same, unless the sidecar reports that the engine hangs: vLLM's /health is 200 while a
                       worker hangs, and only the sidecar knows which requests are waiting. Without a sidecar there is
                       no objection.
POST /adapter          downloads a LoRA adapter, for the sidecar alone
"""

from __future__ import annotations

import http.client
import json
import socket
import socketserver
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from uellm.launcher.adapters import BODY_BYTES, AdapterDownloads
from uellm.pod_interface import ADAPTER_PATH, ADAPTER_TOKEN_HEADER, ENGINE_LIVE_PATH, HANGING_FIELD

# Below the probes' own time-outs, so that the kubelet gets an answer.
ENGINE_TIMEOUT_S = 4.0
SIDECAR_TIMEOUT_S = 0.5
PEER_TIMEOUT_S = 5.0
MOST_PEERS = 64
_PATHS = ("/startup", "/ready", "/live")

Address = tuple[str, int]


def objection(path: str, engine: Address, sidecar: Address) -> str:
    """Why the probe of this path fails; empty where it succeeds."""
    status, _ = _get(engine, "/health", ENGINE_TIMEOUT_S)
    if status != 200:
        return f"the engine's /health: {f'status {status}' if status else 'no answer'}"
    if path == "/live":
        _, document = _get(sidecar, ENGINE_LIVE_PATH, SIDECAR_TIMEOUT_S)
        if document.get(HANGING_FIELD) is True:
            return "the engine hangs: it has requests, and generates no token"
    return ""


def listen(
    port: int, engine: Address, sidecar: Address, adapters: AdapterDownloads | None = None
) -> ThreadingHTTPServer:
    """A server on every address of the pod, IPv6 and IPv4; port 0: any free one. Raises OSError.

    `adapters`: answers the sidecar's requests for LoRA adapters; None: nobody does.
    """

    class Handler(_Handler):
        addresses = engine, sidecar
        downloads = adapters

    return _Server(port, Handler)


def serve(port: int, engine: Address, sidecar: Address, adapters: AdapterDownloads) -> None:
    """Answer for as long as this process lives, in the background. Raises OSError."""
    adapters.publish()
    server = listen(port, engine, sidecar, adapters)
    threading.Thread(target=server.serve_forever, name="probes", daemon=True).start()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        both = socket.has_dualstack_ipv6()
        self.address_family = socket.AF_INET6 if both else socket.AF_INET
        self._both = both
        self._places = threading.BoundedSemaphore(MOST_PEERS)
        super().__init__(("::" if both else "0.0.0.0", port), handler)

    def server_bind(self) -> None:
        if self._both:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # Not HTTPServer's own, which asks DNS for this host's name.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "", self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        # Anybody in the cluster may connect: idle peers must not use up the pod's threads.
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that broke off is no news."""


class _Handler(BaseHTTPRequestHandler):
    timeout = PEER_TIMEOUT_S
    addresses: tuple[Address, Address]
    downloads: AdapterDownloads | None = None

    def do_GET(self) -> None:
        if self.path not in _PATHS:
            self._answer(404, {"error": "no such path"})
            return
        against = objection(self.path, *self.addresses)
        self._answer(503 if against else 200, {"error": against} if against else {"engine": "ready"})

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length") or ""
        if self.path != ADAPTER_PATH or self.downloads is None:
            self._answer(404, {"error": "no such path"})
        elif not length.isdecimal() or int(length) > BODY_BYTES:
            self._answer(400, {"error": f"the body must have a length of at most {BODY_BYTES} bytes"})
        else:
            body = self.rfile.read(int(length))
            self._answer(*self.downloads.answer(self.headers.get(ADAPTER_TOKEN_HEADER) or "", body))

    def _answer(self, status: int, document: dict[str, str]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Probes come every few seconds, and the log is the engine's."""


def _get(address: Address, path: str, timeout_s: float) -> tuple[int, dict[str, Any]]:
    """Status and JSON object of the answer; (0, {}) where there is none."""
    connection = http.client.HTTPConnection(*address, timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read(65536)
    except (OSError, http.client.HTTPException):
        return 0, {}
    finally:
        connection.close()
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    return answer.status, document if isinstance(document, dict) else {}
