"""Works something out in the background, and serves it at one path until the process is told to end."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from threading import Thread
from typing import NamedTuple, TypeVar

from aiohttp import web

from uellm.metrics.server import WebListener

READY_PATH = "/readyz"

Found = TypeVar("Found")


class ServedResult(NamedTuple):
    """Where something is served, and how long once it is known and nobody ends it."""

    host: str | None
    port: int
    path: str
    seconds: float
    stays: bool = False
    """Serve a good result for as long as the process runs, and say at READY_PATH that it is there."""


def log_to_stderr() -> None:
    """Log as a process in a pod does."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


async def serve(
    served: ServedResult,
    work_out: Callable[[], Found],
    told: Callable[[Found], str],
    show: Callable[[asyncio.Future[Found]], web.Response],
    logger: logging.Logger,
    good: Callable[[Found], bool] = bool,
) -> None:
    """`told`: what is logged of the result; `show`: the answer to a request, before and after it is known; `good`:
    whether a result is one that stays."""
    found = _in_background(work_out)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)

    async def answer(_: web.Request) -> web.Response:
        return show(found)

    app = web.Application()

    async def ready(_: web.Request) -> web.Response:
        return web.Response(status=200 if found.done() and good(found.result()) else 503)

    app.add_routes([web.get(served.path, answer), *([web.get(READY_PATH, ready)] if served.stays else [])])
    async with WebListener(app, served.host, served.port, purpose="the result") as listener:
        logger.info("serving on port %d", listener.port)
        known = asyncio.Event()
        found.add_done_callback(lambda _: known.set())
        stop, done = (asyncio.create_task(event.wait()) for event in (ended, known))
        await asyncio.wait({stop, done}, return_when=asyncio.FIRST_COMPLETED)
        if found.done():
            logger.info("%s", told(found.result()))
            stays = served.stays and good(found.result())
            await asyncio.wait({stop}, timeout=None if stays else served.seconds)
        stop.cancel()
        done.cancel()


def _in_background(work_out: Callable[[], Found]) -> asyncio.Future[Found]:
    """The result of a call in a thread that does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Found] = loop.create_future()

    def work() -> None:
        try:
            found = work_out()
        except Exception as error:
            loop.call_soon_threadsafe(future.set_exception, error)
        else:
            loop.call_soon_threadsafe(future.set_result, found)

    Thread(target=work, daemon=True).start()
    return future
