"""Keeps a client from writing at a time when another process may write.

The question is asked before a request is queued, when it has got its connection, and just before its bytes are sent. A
process that was stopped in between, and goes on minutes later, must not send what it had prepared.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import aiohttp

from uellm.kube.errors import KubeError

WritableFor = Callable[[], float]
"""Seconds for which writes are allowed from now on; 0 or less where they are not."""

_READS = ("GET", "HEAD")


class Fenced(KubeError):
    """Nothing was written, because this process may not write now."""

    transient = True


def always() -> float:
    """The fence of a client that may write at any time."""
    return float("inf")


def check(method: str, writable_for: WritableFor) -> None:
    """Raise Fenced for a write at a time when it is not allowed."""
    if method not in _READS and writable_for() <= 0.0:
        raise Fenced(0, "Fenced", "not written: the lease may have been lost, and another operator may be at work")


def trace_config(writable_for: WritableFor) -> aiohttp.TraceConfig:
    """Checks every request of a session once it has a connection, and once its body is to be sent.

    aiohttp sends the headers with the body, from a task of its own: others run between these two.
    """

    async def on_start(_: aiohttp.ClientSession, context: SimpleNamespace, started: Any) -> None:
        context.method = started.method

    async def check_again(_: aiohttp.ClientSession, context: SimpleNamespace, __: Any) -> None:
        check(context.method, writable_for)

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(on_start)
    for moment in (trace.on_connection_reuseconn, trace.on_connection_create_end, trace.on_request_chunk_sent):
        moment.append(check_again)
    return trace
