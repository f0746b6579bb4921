"""Letting go of a pod: no new requests, and waiting for those that are in hand."""

from __future__ import annotations

import asyncio

from uellm.sidecar.outcome import Outcome, Refusal

GRACE_S = 60.0


class Drain:
    """Counts the requests in hand and knows whether new ones are taken."""

    def __init__(self) -> None:
        self.active = 0
        self.draining = False
        self.over = False
        """The process ends now: what is still in hand is cut."""
        self._final = False
        self._idle = asyncio.Event()
        self._idle.set()

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
        """Raises Refusal while draining. Another replica may take the request at once."""
        if self.draining:
            raise Refusal(Outcome.DRAINING, "this replica is about to stop; send the request again", retry_after_s=1)

    def begin(self, *, final: bool = False) -> None:
        """From here on new requests are refused; `final` for good, as the process itself is about to end."""
        self.draining = True
        self._final |= final

    def engine_restarted(self) -> None:
        """Only the engine's container was stopped, for a new one is there: requests are taken again.

        The kubelet runs the preStop hook, and so this drain, also before it restarts a container whose probe failed.
        """
        self.draining = self._final

    async def wait(self, grace_s: float) -> bool:
        """Whether everything in hand was done within the grace period."""
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
