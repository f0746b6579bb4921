"""Polls the engine's metrics, notifies the scheduler of its load, and detects an engine that hangs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from uellm.sidecar import scheduling
from uellm.sidecar.engine.canary import canary_of
from uellm.sidecar.engine.connection import EngineConnection
from uellm.sidecar.engine.liveness import Liveness, Verdict
from uellm.sidecar.engine.metrics_reader import EngineMetrics, read
from uellm.sidecar.settings import LiveSettings

LOG = logging.getLogger("uellm.sidecar")

SOON_SHARE = 0.25
"""Of the usual time between two polls, how much passes where the scheduler needs one."""

STALE_S = 5.0
"""Metrics older than this are stale; the scheduler then counts the engine as full."""


class EngineMonitor:
    """The engine's last metrics, and whether it makes progress."""

    def __init__(
        self,
        engine: EngineConnection,
        on_state: Callable[[scheduling.EngineState], None],
        in_flight: Callable[[], int],
        prefill_s: Callable[[], float],
        wants_report: Callable[[], bool],
        settings: LiveSettings,
        *,
        poll_s: float = 1.0,
    ) -> None:
        self.metrics: EngineMetrics | None = None
        self._engine = engine
        self._on_state = on_state
        self._in_flight = in_flight
        self._prefill_s = prefill_s
        self._wants_report = wants_report
        self._settings = settings
        self._poll_s = poll_s
        self._read_at_s = 0.0
        self._liveness = Liveness()
        self._canary: asyncio.Task[None] | None = None

    def state(self) -> scheduling.EngineState:
        """The engine's state for the scheduler, now."""
        metrics, settings, ready = self.metrics, self._settings.current, self._engine.ready
        if metrics is None:
            # Without metrics only the engine's own limits are known.
            return scheduling.EngineState(
                ready,
                max_num_seqs=settings.max_num_seqs,
                max_num_batched_tokens=settings.max_num_batched_tokens,
                max_model_len=self._engine.max_model_len,
            )
        return scheduling.EngineState(
            ready,
            running=metrics.running,
            waiting=metrics.waiting,
            kv_used_share=metrics.kv_used_share,
            kv_tokens=metrics.kv_tokens,
            max_model_len=self._engine.max_model_len,
            block_tokens=metrics.block_tokens or 16,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            preemptions=metrics.preemptions,
            prompt_tokens=metrics.prompt_tokens,
            cached_tokens=metrics.cached_tokens,
            steps=metrics.steps,
            stale=_now_s() - self._read_at_s > STALE_S,
        )

    async def watch(self) -> None:
        """Poll until cancelled."""
        while True:
            await asyncio.sleep(self._poll_s * (SOON_SHARE if self._wants_report() else 1.0))
            if self._engine.ready or self._engine.hanging:
                await self.look()

    async def look(self) -> None:
        """Poll once, and notify the scheduler."""
        text = await self._engine.metrics()
        metrics = None if text is None else read(text)
        if metrics is not None:
            self.metrics, self._read_at_s = metrics, _now_s()
        self._judge(metrics)
        self._on_state(self.state())

    def restarted(self) -> None:
        """The engine process is a new one: forget the metrics of the old."""
        self.metrics, self._liveness, self._engine.hanging = None, Liveness(), False

    def close(self) -> None:
        """Cancel a canary in flight."""
        if self._canary is not None:
            self._canary.cancel()

    def _judge(self, metrics: EngineMetrics | None) -> None:
        # An engine without these counters cannot be judged.
        if self.metrics is None:
            return
        # Our own count: an engine that hangs does not report the requests that it received since.
        busy = self._in_flight() > 0
        progress = None if metrics is None else metrics.progress
        verdict = self._liveness.look(progress, busy=busy, now_s=_now_s(), prefill_s=self._prefill_s())
        if verdict is Verdict.SEND_CANARY:
            LOG.warning("engine: it has requests and computes no tokens; sending a canary request")
            self.close()
            self._canary = asyncio.create_task(self._send_canary())
        hangs = verdict is Verdict.HANGS
        if hangs != self._engine.hanging:
            self._engine.hanging = hangs
            self._engine.suspect()

    async def _send_canary(self) -> None:
        settings = self._settings.current
        answered = await self._engine.canary(canary_of(settings.task, settings.model), self._liveness.patience_s)
        self._liveness.on_canary(answered=answered, now_s=_now_s())


def _now_s() -> float:
    return asyncio.get_running_loop().time()
