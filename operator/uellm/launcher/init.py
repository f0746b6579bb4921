"""A container's first process, which the kernel treats unlike any other.

It ignores signals that it has no handler for. An engine that is still loading has none yet, and would use up the whole
grace period. It also becomes the parent of every orphaned process.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import FrameType

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def stand_by(*, first: bool | None = None) -> None:
    """As the first process, stay behind as init and return in a child only; as any other, just return.

    Init hands signals on to the child, collects what has died, and ends when the child does, with its status (128 and
    the signal's number where a signal ended it, as shells have it). `first`: whether we are it, where not known by id.
    """
    if not (os.getpid() == 1 if first is None else first):
        return
    # Blocked until there is somebody to hand them on to: none may be lost in between.
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    child = os.fork()
    if child:
        os._exit(_serve(child))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)


def _serve(child: int) -> int:
    def hand_on(number: int, _: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, number)

    for number in FORWARDED:
        signal.signal(number, hand_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    while True:
        process, status = os.waitpid(-1, 0)
        if process == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
