"""HTTP around the decisions: /filter and /prioritize for the scheduler, /healthz and /readyz for the kubelet."""

from __future__ import annotations

import asyncio
import logging
import time

from aiohttp import web

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

# A pod has at most 1.5 MiB and 5,000 names take another; whole nodes instead of names take 10 KiB each.
LARGEST_BODY_BYTES = 32 * 2**20
BODY_DEADLINE_S = 10.0

logger = logging.getLogger(__name__)


def make_app(view: View, refusal_on: RefusalOn, metrics: ExtenderMetrics) -> web.Application:
    """The extender over a view of the cluster."""
    handlers = _Handlers(view, refusal_on, metrics)
    app = web.Application(client_max_size=LARGEST_BODY_BYTES)
    app.router.add_post("/filter", handlers.filter)
    app.router.add_post("/prioritize", handlers.prioritize)
    app.router.add_get("/healthz", handlers.healthz)
    app.router.add_get("/readyz", handlers.readyz)
    return app


class _Handlers:
    def __init__(self, view: View, refusal_on: RefusalOn, metrics: ExtenderMetrics) -> None:
        self._view = view
        self._metrics = metrics
        self._judge = Judge(refusal_on, metrics.refused)
        self._groups = Groups(self._judge)

    async def filter(self, request: web.Request) -> web.Response:
        question = await _question(request)
        start_s = time.monotonic()
        plan = question.plan
        if plan is None:
            return web.json_response(filter_answer(question, {}))
        stale = self._view.staleness()
        if stale:
            self._metrics.refused("Stale")
            return web.json_response(filter_error(stale))
        refused = self._refusals(question, plan)
        if len(refused) == len(question.names):
            self._metrics.found_no_node()
            metadata = question.pod.get("metadata") or {}
            pod, example = f"{metadata.get('namespace')}/{metadata.get('name')}", next(iter(refused.values()), "none")
            logger.info("no node of %d can hold pod %s: %s", len(question.names), pod, example)
        self._metrics.answered("filter", time.monotonic() - start_s)
        return web.json_response(filter_answer(question, refused))

    def _refusals(self, question: ExtenderArgs, text: str) -> dict[str, str]:
        snapshot, group = self._view.snapshot, group_of(question.pod)
        plan = group_plan(text) if group else None
        if plan is not None:
            return self._groups.refusals(group, text, plan, question.names, snapshot)
        kept = self._groups.kept(snapshot)
        return self._judge.refusals(text, question.names, snapshot, lambda node, resource: kept[node, resource])

    async def prioritize(self, request: web.Request) -> web.Response:
        question = await _question(request)
        ranked = {}
        if question.plan is not None:
            start_s = time.monotonic()
            ranked = scores(question.plan, question.names, self._view.snapshot)
            self._metrics.answered("prioritize", time.monotonic() - start_s)
        return web.json_response(prioritize_answer(question.names, ranked))

    async def healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def readyz(self, _: web.Request) -> web.Response:
        stale = self._view.staleness()
        return web.Response(text=stale or "ok", status=503 if stale else 200)


async def _question(request: web.Request) -> ExtenderArgs:
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            body = await request.read()
        return read_args(body)
    except TimeoutError as error:
        raise web.HTTPRequestTimeout(text=f"the body did not arrive within {BODY_DEADLINE_S:g} s") from error
    except BadRequest as error:
        raise web.HTTPBadRequest(text=str(error)) from error
