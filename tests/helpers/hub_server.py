"""A model hub: the file routes of the real one, and of its API what an engine's download needs, on real sockets.

It needs nothing but Python. `python3 hub_server.py DIRECTORY` serves a directory on port 8080 of every address, as a
pod of the end-to-end tests, and prints what it is asked for; the token that it asks for is in HUB_TOKEN. Of a long file
it sends one half, and the other half once there is the file that HUB_HOLD names.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LONG_BYTES = 1 << 20
_ROUTE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_API = re.compile(r"/api/models/([^/]+/[^/]+)/(revision|tree|paths-info)/([^/?]+)(/[^?]+)?(?:\?.*)?")


@dataclass
class HubServer:
    """What it serves and how; and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    repository: str = "org/model"
    others: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files of further repositories, by the repository's name."""
    revisions: tuple[str, ...] = ("main", COMMIT)
    ranges: bool = True
    token: str = ""
    """If set, the repository is gated: only requests with it are served."""
    failure: tuple[int, dict[str, str]] | None = None
    """Status and headers of every answer, instead of a file."""
    redirects: dict[str, str] = field(default_factory=dict)
    """Target by file name; `{}` in it is the file's path here."""
    cut_bytes: int = 0
    """If set, the connection breaks after so many bytes of a body that is longer."""
    damaged: dict[str, bytes] = field(default_factory=dict)
    """Sent instead of the content that is listed, by name."""
    told: dict[str, str] = field(default_factory=dict)
    """Headers of every file, also in place of the right ones."""
    hold: Path | None = None
    """Until there is such a file, one half of a long body is sent."""
    prints: bool = False
    """Print what is asked for."""
    page_files: int = 1000
    """Entries on a page of the list of files."""
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Paths and headers, in order."""
    sent_bytes: int = 0

    def held(self, repository: str) -> dict[str, bytes] | None:
        """The files of a repository; None where there is none of this name."""
        return self.files if repository == self.repository else self.others.get(repository)


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


def _listed(name: str, content: bytes) -> dict[str, Any]:
    """A file's entry in the tree: weights are in LFS, with the checksum of their content."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": blob}
    if name.endswith((".safetensors", ".bin")):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())
        self._reply(*self._api(form.get("paths")))

    def do_GET(self) -> None:
        self.hub.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        if self.hub.prints:
            # In one piece: the lines of several threads must not be mixed.
            print(f"{self.path} {self.headers.get('Range', '')}\n", end="", flush=True)
        self._reply(*(self._api() if self.path.startswith("/api/") else self._answer()))

    def _reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if 0 < self.hub.cut_bytes < len(body):
            body, self.close_connection = body[: self.hub.cut_bytes], True
        try:
            half = len(body) // 2
            if self.hub.hold is not None and len(body) > LONG_BYTES:
                self.wfile.write(body[:half])
                body = body[half:]
                while not self.hub.hold.exists():
                    time.sleep(0.1)  # another process makes it, and nothing tells this one
            self.wfile.write(body)
        except ConnectionError:
            self.close_connection = True
        self.hub.sent_bytes += len(body)

    def _api(self, paths: list[str] | None = None) -> tuple[int, dict[str, str], bytes]:
        """What the repository holds: all of it, or these paths."""
        route = _API.fullmatch(self.path)
        held = self.hub.held(route[1]) if route is not None else None
        if route is None or held is None or not self._has_token():
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        if unquote(route[3]) not in self.hub.revisions:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if route[4]:  # a directory, and there are none
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        told = {"Content-Type": "application/json"}
        names = [name for name in held if paths is None or name in paths]
        if route[2] == "revision":
            listed: Any = {"id": route[1], "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
        else:
            listed = [_listed(name, held[name]) for name in names]
            told |= self._next_page(len(listed))
            first = self._cursor()
            listed = listed[first : first + self.hub.page_files]
        return 200, told, json.dumps(listed).encode()

    def _cursor(self) -> int:
        return int((parse_qs(urlsplit(self.path).query).get("cursor") or ["0"])[0])

    def _next_page(self, entries: int) -> dict[str, str]:
        after = self._cursor() + self.hub.page_files
        if after >= entries:
            return {}
        return {"Link": f'<{self.hub.url}{urlsplit(self.path).path}?cursor={after}>; rel="next"'}

    def _has_token(self) -> bool:
        return not self.hub.token or self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _answer(self) -> tuple[int, dict[str, str], bytes]:
        if self.hub.failure is not None:
            return *self.hub.failure, b""
        stored = self.path.startswith("/stored/")
        route = _ROUTE.fullmatch(self.path)
        name = self.path.removeprefix("/stored/") if stored else route[3] if route else ""
        if not stored and (refused := self._refused(route, name)):
            return refused[0], {"X-Error-Code": refused[1]}, b""
        told = {} if stored else {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(name.encode()).hexdigest()}"'}
        if not stored and name in self.hub.redirects:
            return 302, told | {"Location": self.hub.redirects[name].replace("{}", f"/stored/{name}")}, b""
        content = ((route and self.hub.held(route[1])) or self.hub.files)[name]
        return self._file(self.hub.damaged.get(name, content), told)

    def _refused(self, route: re.Match[str] | None, name: str) -> tuple[int, str] | None:
        held = self.hub.held(route[1]) if route is not None else None
        if route is None or held is None:
            return 401, "RepoNotFound"
        if not self._has_token():
            return 401, "GatedRepo"
        if unquote(route[2]) not in self.hub.revisions:
            return 404, "RevisionNotFound"
        return None if name in held else (404, "EntryNotFound")

    def _file(self, content: bytes, told: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None or not self.hub.ranges:
            return 200, told | self.hub.told, content
        first, last = int(asked[1]), min(int(asked[2]), len(content) - 1)
        told = told | {"Content-Range": f"bytes {first}-{last}/{len(content)}"} | self.hub.told
        return 206, told, content[first : last + 1]

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


def _server(hub: HubServer, address: tuple[str, int]) -> ThreadingHTTPServer:
    return ThreadingHTTPServer(address, type("Handler", (_Handler,), {"hub": hub}))


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A running server, on loopback."""
    hub = HubServer()
    server = _server(hub, ("127.0.0.1", 0))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


if __name__ == "__main__":
    contents = {path.name: path.read_bytes() for path in Path(sys.argv[1]).iterdir() if path.is_file()}
    held = os.environ.get("HUB_HOLD")
    served = HubServer(
        files=contents, token=os.environ.get("HUB_TOKEN", ""), hold=Path(held) if held else None, prints=True
    )
    _server(served, ("0.0.0.0", 8080)).serve_forever()
