"""Draining a pod: not ready first, then no new requests, then waiting for the requests in progress.

After a pod is deleted, some clients still come for a moment, because endpoints and connections change with a delay.
These requests are served, so that a rollout loses none, and their answers close the connection. Then new requests are
refused and idle connections are closed, so that no client reuses one and is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from uellm.proxying.outcome import RETRY_REPLICA_S, Refusal, RequestOutcome, spread_s

GRACE_S = 60.0


def stopping() -> Refusal:
    """The answer to a request that this replica does not take any more."""
    message = "this replica is about to stop; send the request again"
    return Refusal(RequestOutcome.DRAINING, message, retry_after_s=spread_s(RETRY_REPLICA_S))


class Drain:
    """Counts the requests in progress and knows whether new ones are accepted."""

    def __init__(self, on_refusing: Callable[[], None] = lambda: None) -> None:
        """`on_refusing` is called when new requests begin to be refused."""
        self.active = 0
        self.draining = False
        self._since_s = 0.0
        self._on_refusing = on_refusing
        self.over = False
        """The process ends now: requests still in progress are cut."""
        self._final = False
        self._waiting = 0
        self.refusing = False
        """New requests are refused."""
        self._refusal = asyncio.Event()
        self._refuse_later: asyncio.TimerHandle | None = None
        self._given_up = False
        self._give_up_later: asyncio.TimerHandle | None = None
        self._nothing_left = asyncio.Event()
        """No request is waited for. In step with the others only while somebody waits."""

    @property
    def draining_s(self) -> float:
        """Seconds since it began; 0 while it has not."""
        return asyncio.get_running_loop().time() - self._since_s if self.draining else 0.0

    def enter(self) -> None:
        """A request begins."""
        self.active += 1
        if self._waiting:
            self._note()

    def leave(self) -> None:
        """A request ended."""
        self.active -= 1
        if self._waiting:
            self._note()

    def check(self) -> None:
        """Raises Refusal if new requests are refused. Another replica can take this one at once."""
        if self.refusing:
            raise stopping()

    def begin(self, *, lame_duck_s: float = 0.0, final: bool = False) -> None:
        """Become not ready now and refuse new requests after `lame_duck_s`; `final`: for good."""
        if not self.draining:
            self.draining, self._since_s = True, asyncio.get_running_loop().time()
        self._final |= final
        if not lame_duck_s:
            self._refuse()
        elif self._refuse_later is None:
            self._refuse_later = asyncio.get_running_loop().call_later(lame_duck_s, self._refuse)

    def _refuse(self) -> None:
        self.refusing = True
        self._refusal.set()
        self._on_refusing()

    def engine_restarted(self, *, sure: bool) -> None:
        """A new engine is ready, so only the engine's container was stopped: accept requests again.

        The kubelet runs the preStop hook, and so this drain, also before it restarts a container whose probe failed.
        Not `sure`: this is the first engine that was ever ready. While a hook waits, it may be the engine to stop.
        """
        if self._final or (self._waiting and not sure):
            return
        self.draining = False
        self._cancel_refusal()
        self.refusing = False
        self._refusal.clear()

    def expect_answers(self, within_s: float | None) -> None:
        """Requests in progress are waited for only so long from now; None: as long as the grace period."""
        self._cancel_giving_up()
        self._given_up = False
        self._note()
        if within_s is not None:
            self._give_up_later = asyncio.get_running_loop().call_later(within_s, self._give_up)

    def _give_up(self) -> None:
        self._given_up = True
        self._note()

    def _note(self) -> None:
        if self.active and not self._given_up:
            self._nothing_left.clear()
        else:
            self._nothing_left.set()

    async def wait(self, grace_s: float) -> bool:
        """Wait until new requests are refused and none is in progress.

        False if some still are, because the grace period ended first or no answers are expected any more.
        """
        self._waiting += 1
        self._note()
        try:
            async with asyncio.timeout(grace_s):
                await self._refusal.wait()
                await self._nothing_left.wait()
        except TimeoutError:
            return False
        finally:
            self._waiting -= 1
        return not self.active

    def close(self) -> None:
        """Cancel the timers."""
        self._cancel_refusal()
        self._cancel_giving_up()

    def _cancel_refusal(self) -> None:
        if self._refuse_later is not None:
            self._refuse_later.cancel()
            self._refuse_later = None

    def _cancel_giving_up(self) -> None:
        if self._give_up_later is not None:
            self._give_up_later.cancel()
            self._give_up_later = None
