"""Follows the engine's figures: tells the scheduler how full it is, and finds out when it hangs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from uellm.sidecar import scheduling
from uellm.sidecar.engine.connection import EngineConnection
from uellm.sidecar.engine.liveness import CANARY_S, Liveness, Verdict
from uellm.sidecar.engine.metrics_reader import EngineMetrics, read
from uellm.sidecar.settings import LiveSettings

LOG = logging.getLogger("uellm.sidecar")

STALE_S = 5.0
"""Figures older than this say nothing of now, and what is not known counts as full."""


class EngineMonitor:
    """The engine's figures as they were told last."""

    def __init__(
        self,
        engine: EngineConnection,
        on_state: Callable[[scheduling.EngineState], None],
        in_flight: Callable[[], int],
        settings: LiveSettings,
        *,
        poll_s: float = 1.0,
    ) -> None:
        self.metrics: EngineMetrics | None = None
        self._engine = engine
        self._on_state = on_state
        self._in_flight = in_flight
        self._settings = settings
        self._poll_s = poll_s
        self._told_at_s = 0.0
        self._liveness = Liveness()
        self._canary: asyncio.Task[None] | None = None

    def state(self) -> scheduling.EngineState:
        """What the scheduler is to know now."""
        metrics, settings, ready = self.metrics, self._settings.current, self._engine.ready
        if metrics is None:
            # An engine that tells nothing is bounded by what it was told at its start.
            return scheduling.EngineState(
                ready, max_num_seqs=settings.max_num_seqs, max_num_batched_tokens=settings.max_num_batched_tokens
            )
        return scheduling.EngineState(
            ready,
            running=metrics.running,
            waiting=metrics.waiting,
            kv_used_share=metrics.kv_used_share,
            kv_tokens=metrics.kv_tokens,
            block_tokens=metrics.block_tokens or 16,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            preemptions=metrics.preemptions,
            prompt_tokens=metrics.prompt_tokens,
            cached_tokens=metrics.cached_tokens,
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
        metrics = None if text is None else read(text)
        if metrics is not None:
            self.metrics, self._told_at_s = metrics, _now_s()
        self._judge(metrics)
        self._on_state(self.state())

    def restarted(self) -> None:
        """A new engine: what the old one told holds no more."""
        self.metrics, self._liveness, self._engine.hanging = None, Liveness(), False

    def close(self) -> None:
        """Stop a canary that is on its way."""
        if self._canary is not None:
            self._canary.cancel()

    def _judge(self, metrics: EngineMetrics | None) -> None:
        # An engine of another kind has no such counters: nothing can be told of its pulse.
        if self.metrics is None:
            return
        # Not by the engine's own word: one that hangs does not tell of what it got since.
        busy = self._in_flight() > 0
        progress = None if metrics is None else metrics.progress_tokens
        verdict = self._liveness.look(progress, busy=busy, now_s=_now_s())
        if verdict is Verdict.SEND_CANARY:
            LOG.warning("engine: requests run and no token comes; asking it for one")
            self.close()
            self._canary = asyncio.create_task(self._send_canary())
        hangs = verdict is Verdict.HANGS
        if hangs != self._engine.hanging:
            self._engine.hanging = hangs
            self._engine.suspect()

    async def _send_canary(self) -> None:
        answered = await self._engine.canary(self._settings.current.model, CANARY_S)
        self._liveness.on_canary(answered=answered, now_s=_now_s())


def _now_s() -> float:
    return asyncio.get_running_loop().time()
