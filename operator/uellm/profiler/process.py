"""Process-level helpers: signals, logging, the time, threads that may hang."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeVar

T = TypeVar("T")


def log_to_stderr(level: str = "INFO") -> None:
    """Log one line per event, from `level` on; libraries log from level WARNING on."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("uellm").setLevel(level)


def run_until_signal(main: Coroutine[Any, Any, None]) -> None:
    """Run `main` until it ends; SIGTERM and SIGINT cancel it without an error. Raises what `main` raises."""

    async def supervise() -> None:
        task = asyncio.ensure_future(main)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(supervise())


def now() -> str:
    """The time as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def in_daemon_thread(function: Callable[[], T]) -> asyncio.Future[T]:
    """Run a blocking function in a thread. Unlike with `asyncio.to_thread`, a hanging one does not block exit."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(give: Callable[[Any], None], what: Any) -> None:
        if not future.done():
            give(what)

    def work() -> None:
        try:
            give, what = future.set_result, function()
        except Exception as error:
            give, what = future.set_exception, error  # type: ignore[assignment]
        with suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(deliver, give, what)

    threading.Thread(target=work, name=getattr(function, "__qualname__", "work"), daemon=True).start()
    return future
