"""GET /uellm/load: the replica's load as lines of JSON, for gateways that choose among replicas.

A stream and not a document to poll: a gateway then has a load that is at most `INTERVAL_S` old without a request for
each, and the prefixes that it has been told once are not told again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from urllib.parse import parse_qs

from uellm.api.replica_load import ReplicaLoad
from uellm.http import Reply, Request

INTERVAL_S = 0.2
"""Least time between two lines."""
QUIET_S = 0.8
"""Most time between two lines, while nothing changes."""

Load = Callable[[int], ReplicaLoad]
"""The load, with the prefixes after the first so many."""


class LoadStream:
    """The handler."""

    def __init__(self, load: Load) -> None:
        self._load = load

    async def serve(self, request: Request, reply: Reply) -> None:
        """Write lines until the reader leaves. `?prefixes=N`: it knows the first N prefixes."""
        known = _number(request.query)
        reply.start(200, [(b"Content-Type", b"application/x-ndjson")])
        loop = asyncio.get_running_loop()
        last, last_s = b"", -QUIET_S
        while not reply.closed:
            load = self._load(known)
            line = json.dumps(load.to_dict(), separators=(",", ":")).encode() + b"\n"
            if line != last or loop.time() >= last_s + QUIET_S:
                reply.write(line)
                last, last_s, known = line, loop.time(), load.prefixes.count
            await asyncio.sleep(INTERVAL_S)
            await reply.drain()


def _number(query: str) -> int:
    given = parse_qs(query).get("prefixes", ["0"])[-1]
    return int(given) if given.isdecimal() and len(given) < 16 else 0
