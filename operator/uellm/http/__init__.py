"""HTTP/1.1 on asyncio's protocols and the httptools parser, on uvloop where it is there: server and client.

message             headers, limits, the memory budget, a client's fault
head, body          an incoming request: strict checks before the parser, the body as it arrives
plain_head          nearly every head, in one pass
server, listener    a listening port
server_connection   a client's connection: deadlines, its handler
request, reply      what a handler gets
client              the pool of connections to one server
client_connection   one of these connections
upstream, chunks    that server's answer as it arrives
loop                the event loop

A request has one coroutine; the pieces of an answer have none. They go from the engine's socket to the client's in
callbacks, and only the begin and the end of an answer wake a task. A piece that is one whole chunk is passed on without
parsing.
"""

from __future__ import annotations

from uellm.http.chunks import BLANK
from uellm.http.client import EngineAddress, EnginePool
from uellm.http.message import Budget, Fault, Headers, Pairs, RequestLimits, pairs
from uellm.http.reply import Reply
from uellm.http.request import Handler, Request
from uellm.http.server import Server
from uellm.http.server_connection import ServerConnection
from uellm.http.upstream import EngineLost, EngineUnreachable, Upstream

__all__ = [
    "BLANK",
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
