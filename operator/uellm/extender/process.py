"""The extender's process: a view and a server, until SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from uellm.extender.decide import RefusalOn
from uellm.extender.metrics import ExtenderMetrics
from uellm.extender.server import ExtenderServer
from uellm.extender.view import View
from uellm.kube import Kube
from uellm.metrics.server import WebListener, metrics_app

logger = logging.getLogger(__name__)


Address = tuple[str | None, int]
"""Host, or None for every address of the machine, and port."""


@dataclass(frozen=True)
class ExtenderOptions:
    """How the extender runs."""

    listen: Address
    metrics_listen: Address | None = None
    """Address of /metrics alone; None for none."""
    kubeconfig: str | None = None


async def serve(
    options: ExtenderOptions, refusal_on: RefusalOn, *, on_listen: Callable[[int], None] | None = None
) -> None:
    """Serve until SIGTERM or SIGINT. Raises CannotBeDone where an address is taken or no cluster is named."""
    metrics = ExtenderMetrics()
    async with AsyncExitStack() as stack:
        kube = await stack.enter_async_context(
            await Kube.connect(kubeconfig=options.kubeconfig, observe=metrics.api_calls.observe)
        )
        view = View(kube)
        metrics.show_age_of(view)
        if options.metrics_listen is not None:
            app = metrics_app(metrics.registry)
            await stack.enter_async_context(WebListener(app, *options.metrics_listen, purpose="metrics"))
        port = (await stack.enter_async_context(ExtenderServer(view, refusal_on, metrics, *options.listen))).port
        logger.info("extender on %s port %d, cluster %s", options.listen[0] or "all addresses", port, kube.host)
        if on_listen is not None:
            on_listen(port)
        await _until_signal(view)


async def _until_signal(view: View) -> None:
    # If the watches end (a bug), the process ends too: answers from a dead view would be wrong.
    watching = asyncio.ensure_future(view.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, watching.cancel)
    try:
        await asyncio.wait({watching})
    finally:
        watching.cancel()
    if not watching.cancelled():
        watching.result()
