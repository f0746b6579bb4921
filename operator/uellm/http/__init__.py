"""HTTP/1.1 on asyncio's protocols and the httptools parser, on uvloop where it is there: server and client.

message, head, body     what is sent: its limits, strict checks before any parser, the body on its way in
server, listener        a port that listens           connection    a client's connection, its deadlines, its handler
request, reply          what a handler gets           client, link  connections to one server that is asked
upstream, chunks        its answer as it comes        loop          the event loop

Faster things are possible than a coroutine for each request and none for each piece of an answer, but none simpler:
an answer's pieces go from the engine's socket to the client's in callbacks, and only its beginning and end wake a task.
Where a piece is seen to be one whole chunk, it may even go on without being parsed.
"""

from __future__ import annotations

from uellm.http.client import EngineAddress, EnginePool
from uellm.http.message import Budget, Fault, Headers, Pairs, RequestLimits, pairs
from uellm.http.reply import Reply
from uellm.http.request import Handler, Request
from uellm.http.server import Server
from uellm.http.server_connection import ServerConnection
from uellm.http.upstream import EngineLost, EngineUnreachable, Upstream

__all__ = [
    "Budget",
    "EngineAddress",
    "EngineLost",
    "EnginePool",
    "EngineUnreachable",
    "Fault",
    "Handler",
    "Headers",
    "Pairs",
    "Reply",
    "Request",
    "RequestLimits",
    "Server",
    "ServerConnection",
    "Upstream",
    "pairs",
]
