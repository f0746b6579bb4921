"""HTTP around the decisions: /filter and /prioritize for the scheduler, /healthz and /readyz for the kubelet.

The scheduler waits for each answer before it goes on with any pod, so this is the transport of sidecar and gateway,
which takes half of aiohttp's time.
"""

from __future__ import annotations

import logging
import time

import msgspec

from uellm.errors import CannotBeDone
from uellm.extender.decide import Judge, RefusalOn, scores
from uellm.extender.groups import Groups, group_plan
from uellm.extender.metrics import ExtenderMetrics
from uellm.extender.protocol import (
    BadRequest,
    ExtenderArgs,
    filter_answer,
    filter_error,
    group_of,
    prioritize_answer,
    read_args,
)
from uellm.extender.view import View
from uellm.http import Fault, Pairs, Reply, Request, RequestLimits, Server

# A pod has at most 1.5 MiB and 5,000 names take another; whole nodes instead of names take 10 KiB each.
LIMITS = RequestLimits(body_bytes=32 * 2**20, body_deadline_s=10.0)
FLUSH_S = 5.0

_JSON: Pairs = ((b"Content-Type", b"application/json"),)
_TEXT: Pairs = ((b"Content-Type", b"text/plain; charset=utf-8"),)
_encode = msgspec.json.Encoder().encode

logger = logging.getLogger(__name__)


class ExtenderServer:
    """The extender over a view of the cluster: a listening port for as long as the block."""

    def __init__(
        self,
        view: View,
        refusal_on: RefusalOn,
        metrics: ExtenderMetrics,
        host: str | None,
        port: int,
        *,
        limits: RequestLimits = LIMITS,
    ) -> None:
        """`host`: None for every address of the machine; `port` 0: any free one."""
        self._view = view
        self._metrics = metrics
        self._judge = Judge(refusal_on, metrics.refused)
        self._groups = Groups(self._judge)
        self._address = (host, port)
        self._server = Server(self._handle, _unreadable, limits=limits)
        self._decisions = {"/filter": self._filter, "/prioritize": self._prioritize}

    async def __aenter__(self) -> ExtenderServer:
        """Raises CannotBeDone where the address is taken."""
        host, port = self._address
        try:
            await self._server.listen(host or "", port)
        except OSError as error:
            where = f"{host or 'all addresses'} port {port}"
            raise CannotBeDone(f"extender: cannot listen on {where}: {error.strerror}; choose another port") from error
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.close(FLUSH_S)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._server.port

    async def _handle(self, request: Request, reply: Reply) -> None:
        decide, probe = self._decisions.get(request.path), _PROBES.get(request.path)
        if decide is None and probe is None:
            reply.send(404, _TEXT, b"no such path")
        elif request.method not in (("POST",) if decide else ("GET", "HEAD")):
            reply.send(405, _TEXT, b"this method is not allowed here")
        elif decide is not None:
            try:
                answer = decide(read_args(await request.read()))
            except BadRequest as error:
                reply.send(400, _TEXT, str(error).encode())
            except Fault as fault:
                reply.send(fault.status, _TEXT, fault.message.encode())
            else:
                reply.send(200, _JSON, _encode(answer))
        elif probe is not None:
            refusal = probe(self._view)
            reply.send(503 if refusal else 200, _TEXT, (refusal or "ok").encode())

    def _filter(self, question: ExtenderArgs) -> object:
        start_s = time.monotonic()
        plan = question.plan
        if plan is None:
            return filter_answer(question, {})
        stale = self._view.staleness()
        if stale:
            self._metrics.refused("Stale")
            return filter_error(stale)
        refused = self._refusals(question, plan)
        if len(refused) == len(question.names):
            self._metrics.found_no_node()
            metadata = question.pod.get("metadata") or {}
            pod, example = f"{metadata.get('namespace')}/{metadata.get('name')}", next(iter(refused.values()), "none")
            logger.info("no node of %d can hold pod %s: %s", len(question.names), pod, example)
        self._metrics.answered("filter", time.monotonic() - start_s)
        return filter_answer(question, refused)

    def _refusals(self, question: ExtenderArgs, text: str) -> dict[str, str]:
        snapshot, group = self._view.snapshot, group_of(question.pod)
        plan = group_plan(text) if group else None
        if plan is not None:
            return self._groups.refusals(group, text, plan, question.names, snapshot)
        kept = self._groups.kept(snapshot)
        return self._judge.refusals(text, question.names, snapshot, lambda *where: kept.get(where, 0))

    def _prioritize(self, question: ExtenderArgs) -> object:
        ranked = {}
        if question.plan is not None:
            start_s = time.monotonic()
            ranked = scores(question.plan, question.names, self._view.snapshot)
            self._metrics.answered("prioritize", time.monotonic() - start_s)
        return prioritize_answer(question.names, ranked)


_PROBES = {"/healthz": lambda _: None, "/readyz": View.staleness}


def _unreadable(fault: Fault) -> tuple[Pairs, bytes]:
    return _TEXT, fault.message.encode()
