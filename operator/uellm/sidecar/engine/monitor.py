"""Follows the engine's figures: tells the scheduler how full it is, and finds out when it hangs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from uellm.sidecar import scheduling
from uellm.sidecar.config import Bounds
from uellm.sidecar.engine.connection import Engine
from uellm.sidecar.engine.liveness import CANARY_S, Pulse, Verdict
from uellm.sidecar.engine.metrics_reader import Gauges, read

LOG = logging.getLogger("uellm.sidecar")

STALE_S = 5.0
"""Figures older than this say nothing of now, and what is not known counts as full."""


class Vitals:
    """The engine's figures as they were told last."""

    def __init__(
        self,
        engine: Engine,
        on_state: Callable[[scheduling.EngineState], None],
        in_flight: Callable[[], int],
        *,
        model: str,
        bounds: Bounds,
        poll_s: float = 1.0,
    ) -> None:
        self.model = model
        self.bounds = bounds
        self.gauges: Gauges | None = None
        self._engine = engine
        self._on_state = on_state
        self._in_flight = in_flight
        self._poll_s = poll_s
        self._told_at_s = 0.0
        self._pulse = Pulse()
        self._canary: asyncio.Task[None] | None = None

    def state(self) -> scheduling.EngineState:
        """What the scheduler is to know now."""
        gauges, bounds, ready = self.gauges, self.bounds, self._engine.ready
        if gauges is None:
            # An engine that tells nothing is bounded by what it was told at its start.
            return scheduling.EngineState(
                ready, max_num_seqs=bounds.max_num_seqs, max_num_batched_tokens=bounds.max_num_batched_tokens
            )
        return scheduling.EngineState(
            ready,
            running=gauges.running,
            waiting=gauges.waiting,
            kv_used_share=gauges.kv_used_share,
            kv_tokens=gauges.kv_tokens,
            block_tokens=gauges.block_tokens or 16,
            max_num_seqs=bounds.max_num_seqs,
            max_num_batched_tokens=bounds.max_num_batched_tokens,
            preemptions=gauges.preemptions,
            prompt_tokens=gauges.prompt_tokens,
            cached_tokens=gauges.cached_tokens,
            stale=_now_s() - self._told_at_s > STALE_S,
        )

    async def watch(self) -> None:
        """Ask again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._poll_s)
            if self._engine.ready or self._engine.hanging:
                await self.look()

    async def look(self) -> None:
        """Ask once, and tell."""
        text = await self._engine.metrics()
        gauges = None if text is None else read(text)
        if gauges is not None:
            self.gauges, self._told_at_s = gauges, _now_s()
        self._judge(gauges)
        self._on_state(self.state())

    def restarted(self) -> None:
        """A new engine: what the old one told holds no more."""
        self.gauges, self._pulse, self._engine.hanging = None, Pulse(), False

    def close(self) -> None:
        """Stop a canary that is on its way."""
        if self._canary is not None:
            self._canary.cancel()

    def _judge(self, gauges: Gauges | None) -> None:
        # An engine of another kind has no such counters: nothing can be told of its pulse.
        if self.gauges is None:
            return
        # Not by the engine's own word: one that hangs does not tell of what it got since.
        busy = self._in_flight() > 0
        progress = None if gauges is None else gauges.progress_tokens
        verdict = self._pulse.look(progress, busy=busy, now_s=_now_s())
        if verdict is Verdict.SEND_CANARY:
            LOG.warning("engine: requests run and no token comes; asking it for one")
            self.close()
            self._canary = asyncio.create_task(self._send_canary())
        hangs = verdict is Verdict.HANGS
        if hangs != self._engine.hanging:
            self._engine.hanging = hangs
            self._engine.suspect()

    async def _send_canary(self) -> None:
        answered = await self._engine.canary(self.model, CANARY_S)
        self._pulse.on_canary(answered=answered, now_s=_now_s())


def _now_s() -> float:
    return asyncio.get_running_loop().time()
