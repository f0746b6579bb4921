"""The engine's parent: a container's first process, which the kernel treats unlike any other.

It ignores signals that it has no handler for. An engine that is still loading has none yet, and would use up the whole
grace period. It also becomes the parent of every orphaned process.

Because it outlives the engine, it answers the kubelet's probes and reports why the engine failed. It passes the
engine's output on and keeps the last lines.
"""

from __future__ import annotations

import math
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

from uellm.launcher.cause import find_cause
from uellm.launcher.group.watch import ENDS_IN_S, GroupWatch, WatchedPeer
from uellm.launcher.output import LastLines, Tee
from uellm.placement_report import ENGINE_FAILED, LOG_PREFIX, LaunchFailure
from uellm.pod_interface import ENGINE_ENDS_IN_S

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
# For what the engine's other processes still print after its end.
LAST_OUTPUT_S = 1.0
TERMINATION_LOG = Path("/dev/termination-log")
MESSAGE_BYTES = 4096
"""What the kubelet takes of a termination message."""


def stand_by(
    *,
    first: bool | None = None,
    serve: Callable[[], None] | None = None,
    follows: bool | None = None,
    termination_log: Path = TERMINATION_LOG,
    ends_in_s: float = ENGINE_ENDS_IN_S,
) -> socket.socket | None:
    """As the first process, stay behind as the engine's parent and return in a child only; as any other, just return.

    The parent forwards signals to the child, collects what has died, and ends when the child does, with its status (128
    plus the signal's number where a signal ended it, as in shells). `first`: whether this is the first process; None:
    its id decides. A process that has to `serve` (start answering probes, in the background) stays behind in any case.
    So does one of a group, of which it watches the connections that come through the returned channel. `follows`:
    whether this pod has a leader; None: it is no group's. `ends_in_s`: when a child that was told to end is killed.
    """
    stays = os.getpid() == 1 if first is None else first
    if not stays and serve is None and follows is None:
        return None
    here, there = (None, None) if follows is None else socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # Blocked until there is a child to forward them to: none may be lost in between.
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    (out, child_out), (errors, child_errors) = os.pipe(), os.pipe()
    child = os.fork()
    if child:
        os.close(child_out)
        os.close(child_errors)
        if there is not None:
            there.close()
        watch = None if here is None else GroupWatch(here, follows=bool(follows))
        parent = _Parent(child, (out, errors), termination_log, watch, ends_in_s)
        os._exit(parent.run(serve))
    for source, target in ((child_out, 1), (child_errors, 2)):
        os.dup2(source, target)
    for descriptor in (out, errors, child_out, child_errors):
        os.close(descriptor)
    if here is not None:
        here.close()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    return there


class _Parent:
    def __init__(
        self,
        child: int,
        outputs: tuple[int, int],
        termination_log: Path,
        watch: GroupWatch | None,
        ends_in_s: float,
    ) -> None:
        self._child = child
        self._ends_in_s = ends_in_s
        self._watch = watch
        self._kill_at_s = math.inf
        self._lines = LastLines()
        self._tees = [Tee(source, target, self._lines.add) for source, target in zip(outputs, (1, 2), strict=True)]
        self._termination_log = termination_log
        self._stopped = False

    def run(self, serve: Callable[[], None] | None) -> int:
        """Until the child has ended; its exit status."""
        wake, woken = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(woken, False)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in FORWARDED:
            signal.signal(number, self._forward)
        if serve is not None:
            # Threads inherit the mask, so that only this one gets the signals.
            _serve_or_log(serve)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        with selectors.DefaultSelector() as selector:
            selector.register(wake, selectors.EVENT_READ, None)
            for tee in self._tees:
                os.set_blocking(tee.source, False)
                selector.register(tee.source, selectors.EVENT_READ, tee)
            if self._watch is not None:
                selector.register(self._watch.channel, selectors.EVENT_READ, self._watch)
            status = self._until_it_ends(selector, wake)
            self._read_last_output(selector)
        for tee in self._tees:
            tee.finish()
        if self._watch is not None and not self._stopped:
            # An engine that ends unasked has failed: vLLM's workers on other nodes say 0 whatever ended them.
            status = status or 1
        if status and not self._stopped:
            self._explain(status)
        return status

    def _forward(self, number: int, _: FrameType | None) -> None:
        ends = number in (signal.SIGTERM, signal.SIGINT)
        self._stopped = self._stopped or ends
        if not (ends and self._watch is not None and self._watch.waits_for_leader):
            self._signal(number)
            if ends:
                # A pod's grace period may be 10 minutes, for its answers. An engine that hangs must not have them all.
                self._kill_at_s = min(self._kill_at_s, time.monotonic() + self._ends_in_s)

    def _until_it_ends(self, selector: selectors.BaseSelector, wake: int) -> int:
        while True:
            left_s = None if self._kill_at_s == math.inf else max(0.0, self._kill_at_s - time.monotonic())
            for key, _ in selector.select(left_s):
                if key.data is None:
                    with suppress(BlockingIOError):
                        os.read(wake, 4096)
                elif not self._read(key.data, selector):
                    selector.unregister(key.fileobj)
            if time.monotonic() >= self._kill_at_s:
                self._kill_at_s = math.inf
                self._signal(signal.SIGKILL)
            if (status := self._collect()) is not None:
                return status

    def _read(self, source: Tee | GroupWatch | WatchedPeer, selector: selectors.BaseSelector) -> bool:
        """Read what is there now. False at its end."""
        if isinstance(source, Tee):
            return source.pump()
        if isinstance(source, GroupWatch):
            return source.take(lambda peer: selector.register(peer.connection, selectors.EVENT_READ, peer) and None)
        if source.is_there:
            return True
        if self._watch is not None and not self._watch.lost:
            self._watch.lost = source.name
            self._kill_at_s = time.monotonic() + ENDS_IN_S
            self._signal(signal.SIGTERM)
        return False

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._child, number)

    def _collect(self) -> int | None:
        """Collect what has died; the exit status of the child, if it is among them."""
        ended = None
        with suppress(ChildProcessError):
            while True:
                process, status = os.waitpid(-1, os.WNOHANG)
                if not process:
                    break
                if process == self._child:
                    code = os.waitstatus_to_exitcode(status)
                    ended = code if code >= 0 else 128 - code
        return ended

    def _read_last_output(self, selector: selectors.BaseSelector) -> None:
        """Pass on what is still in the pipes, and the output of processes that outlive the engine's first one."""
        until_s = time.monotonic() + LAST_OUTPUT_S
        for key in list(selector.get_map().values()):
            if not isinstance(key.data, Tee):
                selector.unregister(key.fileobj)
        while selector.get_map() and (left_s := until_s - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                if not key.data.pump():
                    selector.unregister(key.fileobj)

    def _explain(self, status: int) -> None:
        """Write the cause where the kubelet takes it from, unless the launcher has written one itself."""
        try:
            if self._termination_log.exists() and not self._termination_log.stat().st_size:
                lost = self._watch.failure() if self._watch is not None and self._watch.lost else None
                self._termination_log.write_bytes(message(self._lines.all(), status, lost))
        except OSError as problem:
            print(f"{LOG_PREFIX}{self._termination_log} cannot be written: {problem}", file=sys.stderr, flush=True)


def message(lines: list[str], status: int, lost: LaunchFailure | None = None) -> bytes:
    """The termination message: the cause, then as many of the last lines as fit. `lost`: a pod that it cannot do
    without has gone, whatever else the engine prints."""
    last = lines[-1].strip() if lines else "it printed nothing"
    failure = lost or LaunchFailure(ENGINE_FAILED, find_cause(lines) or _ended_by(status) or last)
    head = f"{failure.to_line()}\n\n".encode()[:MESSAGE_BYTES]
    tail: list[bytes] = []
    room = MESSAGE_BYTES - len(head)
    for line in reversed(lines):
        encoded = line.encode() + b"\n"
        room -= len(encoded)
        if room < 0:
            break
        tail.append(encoded)
    return head + b"".join(reversed(tail))


def _ended_by(status: int) -> str:
    """In words, where a signal ended the engine."""
    if status <= 128:
        return ""
    try:
        name = signal.Signals(status - 128).name
    except ValueError:
        return ""
    hint = ", most likely because memory ran out" if name == "SIGKILL" else ""
    return f"it was ended by {name}{hint}"


def _serve_or_log(serve: Callable[[], None]) -> None:
    try:
        serve()
    except OSError as problem:
        print(f"{LOG_PREFIX}the kubelet's probes cannot be answered: {problem}", file=sys.stderr, flush=True)
