"""Letting go of a pod: first not ready, then no new requests, and waiting for those that are in hand.

Between a pod's deletion and the last client that is still sent to it lies a moment, for endpoints and connections take
time to change. Requests of that moment are served, so that a rollout loses none; their answers close the connection.
Then nothing more is taken, and connections that nobody uses are closed: a client would find out by a refused request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from uellm.sidecar.outcome import RETRY_REPLICA_S, Outcome, Refusal, spread_s

GRACE_S = 60.0
LAME_DUCK_S = 5.0
"""How long requests are still taken once the pod is not ready: a few rounds of endpoint controller and kube-proxy."""


class Drain:
    """Counts the requests in hand and knows whether new ones are taken."""

    def __init__(self) -> None:
        self.active = 0
        self.draining = False
        self.on_refusing: Callable[[], None] = lambda: None
        """Called when from now on new requests are refused."""
        self.over = False
        """The process ends now: what is still in hand is cut."""
        self._final = False
        self._waiting = 0
        self._refusing = asyncio.Event()
        self._refuse_later: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def refusing(self) -> bool:
        """Whether new requests are refused."""
        return self._refusing.is_set()

    def enter(self) -> None:
        """A request is in hand."""
        self.active += 1
        self._idle.clear()

    def leave(self) -> None:
        """It is no more."""
        self.active -= 1
        if not self.active:
            self._idle.set()

    def check(self) -> None:
        """Raises Refusal once no more requests are taken. Another replica may take this one at once."""
        if self.refusing:
            told = "this replica is about to stop; send the request again"
            raise Refusal(Outcome.DRAINING, told, retry_after_s=spread_s(RETRY_REPLICA_S))

    def begin(self, *, lame_duck_s: float = 0.0, final: bool = False) -> None:
        """Not ready from here on, and `lame_duck_s` later new requests are refused; `final`: for good."""
        self.draining = True
        self._final |= final
        if not lame_duck_s:
            self._refuse()
        elif self._refuse_later is None:
            self._refuse_later = asyncio.get_running_loop().call_later(lame_duck_s, self._refuse)

    def _refuse(self) -> None:
        self._refusing.set()
        self.on_refusing()

    def engine_restarted(self, *, sure: bool) -> None:
        """Only the engine's container was stopped, for a new one is there: requests are taken again.

        The kubelet runs the preStop hook, and so this drain, also before it restarts a container whose probe failed,
        be it the startup probe. Not `sure`: this is the first engine that was ever seen ready, and while a hook
        still waits it may be the very one that is to stop.
        """
        if self._final or (self._waiting and not sure):
            return
        self.draining = False
        self.close()
        self._refusing.clear()

    async def wait(self, grace_s: float) -> bool:
        """Whether, within the grace period, no more requests were taken and everything in hand was done."""
        self._waiting += 1
        try:
            async with asyncio.timeout(grace_s):
                await self._refusing.wait()
                await self._idle.wait()
        except TimeoutError:
            return False
        finally:
            self._waiting -= 1
        return True

    def close(self) -> None:
        """Stop the clock."""
        if self._refuse_later is not None:
            self._refuse_later.cancel()
            self._refuse_later = None
