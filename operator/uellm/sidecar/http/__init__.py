"""HTTP/1.1 on asyncio's protocols and the httptools parser, on uvloop where it is there: server and client.

message       headers, limits, what a peer did wrong           head      a request's head: checked strictly, then parsed
body          a request's body on its way in                   reply     an answer on its way out
server        connections of clients, deadlines, handlers      client    connections to one server that is asked
listener      taking connections                               loop      the event loop

Faster things are possible than a coroutine for each request and none for each piece of an answer, but none simpler:
an answer's pieces go from the engine's socket to the client's in callbacks, and only its beginning and end wake a task.
"""

from __future__ import annotations

from uellm.sidecar.http.client import EngineAddress, EngineLost, EnginePool, EngineUnreachable, Upstream
from uellm.sidecar.http.message import Budget, Fault, Headers, Limits, Pairs, pairs
from uellm.sidecar.http.reply import Reply
from uellm.sidecar.http.server import Connection, Handler, Request, Server

__all__ = [
    "Budget",
    "Connection",
    "EngineAddress",
    "EngineLost",
    "EnginePool",
    "EngineUnreachable",
    "Fault",
    "Handler",
    "Headers",
    "Limits",
    "Pairs",
    "Reply",
    "Request",
    "Server",
    "Upstream",
    "pairs",
]
