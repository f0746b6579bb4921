"""The extender's process: a view and a server, which answers open requests when SIGTERM ends it."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable

from aiohttp import web

from uellm.errors import CannotBeDone
from uellm.extender.decide import RefusalOn
from uellm.extender.server import make_app
from uellm.extender.view import View
from uellm.kube import Kube

GRACE_S = 5.0

logger = logging.getLogger(__name__)


async def serve(
    host: str,
    port: int,
    refusal_on: RefusalOn,
    *,
    kubeconfig: str | None = None,
    on_listen: Callable[[int], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT. Raises CannotBeDone where the address is taken or no cluster is named."""
    async with await Kube.connect(kubeconfig=kubeconfig) as kube:
        view = View(kube)
        runner = web.AppRunner(make_app(view, refusal_on), access_log=None, shutdown_timeout=GRACE_S)
        await runner.setup()
        try:
            port = await _listen(runner, host, port)
            logger.info("extender on %s port %d, cluster %s", host, port, kube.host)
            if on_listen is not None:
                on_listen(port)
            await _until_signal(view)
        finally:
            await runner.cleanup()


async def _listen(runner: web.AppRunner, host: str, port: int) -> int:
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise CannotBeDone(f"cannot listen on {host} port {port}: {error.strerror}; choose another --listen") from error
    return int(runner.addresses[0][1])


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
