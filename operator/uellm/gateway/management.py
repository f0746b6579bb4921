"""The metrics port: metrics and the probes of the gateway."""

from __future__ import annotations

import json

from uellm.gateway.telemetry import GatewayMetrics
from uellm.gateway.view import FleetView
from uellm.http import Fault, Pairs, Reply, Request
from uellm.proxying.drain import Drain
from uellm.proxying.metrics import CONTENT_TYPE, exposition

_JSON: Pairs = ((b"Content-Type", b"application/json"),)
_TEXT: Pairs = ((b"Content-Type", CONTENT_TYPE.encode()),)


class GatewayManagement:
    """The handlers of the metrics port."""

    def __init__(self, figures: GatewayMetrics, view: FleetView, drain: Drain) -> None:
        self._figures = figures
        self._view = view
        self._drain = drain

    async def handle(self, request: Request, reply: Reply) -> None:
        """Answer one request."""
        if request.method not in ("GET", "HEAD"):
            _answer(reply, 405, {"error": {"message": "this method is not allowed here"}})
        elif request.path == "/metrics":
            reply.send(200, _TEXT, exposition(self._figures.metrics).encode())
        elif request.path == "/livez":
            _answer(reply, 200, self._state())
        elif request.path == "/readyz":
            _answer(reply, 200 if self._view.complete and not self._drain.draining else 503, self._state())
        else:
            _answer(reply, 404, {"error": {"message": "no such path"}})

    def unreadable(self, fault: Fault) -> tuple[Pairs, bytes]:
        """Headers and body of the answer to a message that is not HTTP."""
        return _JSON, json.dumps({"error": {"message": fault.message}}).encode()

    def _state(self) -> dict[str, bool]:
        return {"servicesKnown": self._view.complete, "draining": self._drain.draining}


def _answer(reply: Reply, status: int, document: object) -> None:
    reply.send(status, _JSON, json.dumps(document).encode())
