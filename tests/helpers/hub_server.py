"""A model hub on loopback: the file routes of the real one, on real sockets."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_ROUTE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^/]+)")


@dataclass
class HubServer:
    """What it serves and how; and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    repository: str = "org/model"
    revisions: tuple[str, ...] = ("main", COMMIT)
    ranges: bool = True
    token: str = ""
    """If set, the repository is gated: only requests with it are served."""
    failure: tuple[int, dict[str, str]] | None = None
    """Status and headers of every answer, instead of a file."""
    redirects: dict[str, str] = field(default_factory=dict)
    """Target by file name; `{}` in it is the file's path here."""
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Paths and headers, in order."""
    sent_bytes: int = 0


def tensor_file(shapes: dict[str, list[int]], dtype: str = "BF16", *, padding: int = 0) -> bytes:
    """A safetensors file with zeros; `padding` makes its header longer by so many bytes."""
    entries: dict[str, Any] = {"__metadata__": {"note": "x" * padding}} if padding else {}
    end = 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + bytes(end)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_GET(self) -> None:
        self.hub.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        status, headers, body = self._answer()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except ConnectionError:
            self.close_connection = True
        self.hub.sent_bytes += len(body)

    def _answer(self) -> tuple[int, dict[str, str], bytes]:
        if self.hub.failure is not None:
            return *self.hub.failure, b""
        stored = self.path.startswith("/stored/")
        route = _ROUTE.fullmatch(self.path)
        name = self.path.removeprefix("/stored/") if stored else route[3] if route else ""
        if not stored and (refused := self._refused(route, name)):
            return refused[0], {"X-Error-Code": refused[1]}, b""
        told = {} if stored else {"X-Repo-Commit": COMMIT, "ETag": '"tag"'}
        if not stored and name in self.hub.redirects:
            return 302, told | {"Location": self.hub.redirects[name].replace("{}", f"/stored/{name}")}, b""
        return self._file(self.hub.files[name], told)

    def _refused(self, route: re.Match[str] | None, name: str) -> tuple[int, str] | None:
        if route is None or route[1] != self.hub.repository:
            return 401, "RepoNotFound"
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return 401, "GatedRepo"
        if unquote(route[2]) not in self.hub.revisions:
            return 404, "RevisionNotFound"
        return None if name in self.hub.files else (404, "EntryNotFound")

    def _file(self, content: bytes, told: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None or not self.hub.ranges:
            return 200, told, content
        first, last = int(asked[1]), min(int(asked[2]), len(content) - 1)
        return 206, told | {"Content-Range": f"bytes {first}-{last}/{len(content)}"}, content[first : last + 1]

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A running server."""
    hub = HubServer()

    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
