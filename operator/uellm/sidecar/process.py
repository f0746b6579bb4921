"""The sidecar's process: everything put together, from the first socket to the last answer."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import Any

from uellm import __version__
from uellm.api.replica_load import ReplicaLoad
from uellm.api.running_report import RunningReport
from uellm.http import Budget, EngineAddress, RequestLimits, Server
from uellm.pod_interface import LAME_DUCK_S
from uellm.proxying.drain import GRACE_S
from uellm.proxying.metrics import Labels
from uellm.proxying.process import Address, Ending, prepare
from uellm.proxying.serving import ServingProxy
from uellm.sidecar.engine.adapters import AdapterLoader
from uellm.sidecar.engine.connection import EngineConnection, EngineHealth
from uellm.sidecar.engine.monitor import EngineMonitor
from uellm.sidecar.management import Management
from uellm.sidecar.prediction.service import FILE, Predictor
from uellm.sidecar.request.dispatch import Dispatcher
from uellm.sidecar.request.proxy import Proxy
from uellm.sidecar.settings import LiveSettings
from uellm.sidecar.telemetry import help_texts, tracing
from uellm.sidecar.telemetry.sidecar_metrics import SidecarMetrics
from uellm.vllm_routes import AUDIO, AUDIO_BODY_BYTES

LOG = logging.getLogger("uellm.sidecar")

_LIMITS = RequestLimits(body_bytes_of=dict.fromkeys(AUDIO, AUDIO_BODY_BYTES))


@dataclass(frozen=True)
class SidecarOptions:
    """What the command line says; times in seconds."""

    listen: Address
    engine: EngineAddress
    config: Path
    engine_parent: EngineAddress | None = None
    """The engine's parent, which downloads LoRA adapters."""
    engine_config: Path | None = None
    """The pod's own file."""
    metrics_listen: Address | None = None
    placement: Path | None = None
    state: Path | None = None
    """Directory for what is to outlive a restart."""
    grace_s: float = GRACE_S
    sick_grace_s: float = GRACE_S
    """How long a drain waits for an engine that does not answer its probes, or makes no progress."""
    lame_duck_s: float = LAME_DUCK_S
    limits: RequestLimits = _LIMITS
    engine_poll_s: float = 1.0
    engine_poll_away_s: float = 0.25
    figures_poll_s: float = 1.0
    config_poll_s: float = 2.0


class Sidecar(ServingProxy):
    """A running sidecar."""

    def __init__(self, options: SidecarOptions) -> None:
        super().__init__(options.listen, options.metrics_listen)
        self._options = options
        self._name = token_hex(4)
        self.settings = LiveSettings(options.config, options.engine_config)
        self.figures = SidecarMetrics()
        current = self.settings.current
        self.dispatcher = Dispatcher(current.options, current.step_model, self.figures.faults, current.step_factors)
        self.engine = EngineConnection(
            options.engine,
            self._on_engine,
            poll_interval_s=options.engine_poll_s,
            poll_interval_away_s=options.engine_poll_away_s,
        )
        run_directory = None if options.placement is None else options.placement.parent
        self.adapters = AdapterLoader(self.engine.pool, self.settings, options.engine_parent, run_directory)
        self.engine.on_started = self._engine_started
        self.monitor = EngineMonitor(
            self.engine,
            self.dispatcher.on_engine_state,
            lambda: self.dispatcher.in_flight,
            lambda: self.dispatcher.prefill_s,
            lambda: self.dispatcher.wants_report,
            self.settings,
            poll_s=options.figures_poll_s,
        )
        bodies = Budget()
        self.lengths = Predictor(None if options.state is None else options.state / FILE)
        self.lengths.learned.switch(on=current.uses_learned_model)
        self.proxy = Proxy(
            self.settings,
            self.engine,
            self.dispatcher,
            self.figures,
            bodies,
            self.lengths,
            self.drain,
            tracing=tracing.from_environment(),
        )
        limits = current.limits(options.limits)
        self._server = Server(self.proxy.handle, self.proxy.unreadable, limits=limits, budget=bodies)
        self._management = Management(
            self.proxy,
            self.engine,
            options.placement,
            self._running,
            self.load,
            grace_s=options.grace_s,
            lame_duck_s=options.lame_duck_s,
        )
        self._management_server = Server(self._management.handle, self._management.unreadable)
        self._add_gauges()

    def _watches(self) -> Iterable[Coroutine[Any, Any, None]]:
        lengths = (self.lengths.keep(), self.lengths.learned.run())
        return (self.engine.watch(), self.monitor.watch(), self.adapters.watch(), self._watch_config(), *lengths)

    async def _close(self) -> None:
        self.monitor.close()
        self.proxy.background.close()
        self.dispatcher.close()
        self.engine.close()
        self.adapters.close()
        await self.lengths.save()
        if self.proxy.tracing is not None:
            await asyncio.to_thread(self.proxy.tracing.close)

    def load(self, known_prefixes: int) -> ReplicaLoad:
        """The replica's load. Names of the engine's process begin with this sidecar's own, which a restart changes."""
        load, model = self.dispatcher.load(known_prefixes), self.settings.current.model
        return replace(
            load,
            incarnation=f"{self._name}-{load.incarnation}",
            draining=self.drain.draining,
            names=(model, *self.adapters.served) if model else (),
        )

    async def stop(self, *, linger: bool) -> bool:
        """Refuse what is new, for good, and wait for what is in hand; whether all of it was done in time.

        `linger`: some clients still come after the pod's end began; for a while they are answered that it ends.
        """
        self.drain.begin(final=True)
        done = await self.drain.wait(self._options.grace_s)
        if linger:
            await asyncio.sleep(max(0.0, self._options.lame_duck_s - self.drain.draining_s))
        return done

    async def _engine_started(self) -> bool:
        await self.engine.read_max_model_len()
        return await self.adapters.engine_started()

    def _on_engine(self, old: EngineHealth, new: EngineHealth) -> None:
        LOG.info("engine: %s -> %s", old, new)
        # Nobody restarts the engine of a pod that ends, so its requests could hold the pod's GPUs for a whole long
        # grace period.
        self.drain.expect_answers(self._options.sick_grace_s if new is EngineHealth.UNHEALTHY else None)
        if new is EngineHealth.READY and old in (EngineHealth.STARTING, EngineHealth.GONE):
            self.drain.engine_restarted(sure=old is EngineHealth.GONE)
            self.proxy.terms.shapes.forget()
            self.monitor.restarted()
        self.dispatcher.on_engine_state(self.monitor.state())

    async def _watch_config(self) -> None:
        while True:
            await asyncio.sleep(self._options.config_poll_s)
            self.reload()

    def reload(self) -> None:
        """Take over the configuration file and the API keys if they changed. A bad file is logged and changes nothing.

        Requests that wait keep the targets that they came with.
        """
        found = self.settings.poll()
        if found.keys:
            LOG.info("API keys: new ones are in force")
        if found.config:
            current = self.settings.current
            self.lengths.learned.switch(on=current.uses_learned_model)
            self.dispatcher.reconfigure(current.options, current.step_model, current.step_factors)
            self._server.limits = current.limits(self._options.limits)
            self.adapters.changed()
            self.figures.reloads.add("taken")
            LOG.info("configuration: a new one is in force")
        if found.refused is not None:
            self.figures.reloads.add("refused")
            LOG.error("configuration: the new one is refused and the old one stays in force: %s", found.refused)

    def _add_gauges(self) -> None:
        gauge = self.figures.gauge
        gauge("uellm_sidecar_info", "What runs here.", self._info, "model", "version", "policy")
        gauge("uellm_requests_queued", "Requests that wait for the engine.", self._queued, "class")
        gauge("uellm_requests_in_flight", "Scheduled requests that the engine has.", lambda: self.dispatcher.in_flight)
        gauge("uellm_requests_active", "Requests in hand, those that pass unscheduled included.", self._active)
        gauge("uellm_body_bytes", "Bytes of request bodies in memory.", lambda: self.proxy.bodies.held_bytes)
        gauge("uellm_engine_ready", "1 while requests are sent to the engine.", lambda: self.engine.ready)
        gauge("uellm_draining", "1 once the pod is to go, and not ready.", lambda: self.drain.draining)
        gauge("uellm_characters_per_token", "By which prompts' lengths are estimated.", self._characters_per_token)
        gauge("uellm_template_tokens", "Tokens that the engine's template adds to a prompt.", self._template_tokens)
        self.figures.figures("uellm_predictor_", help_texts.PREDICTOR, self.lengths.figures)
        self.figures.figures("uellm_learned_predictor_", help_texts.LEARNED, self.lengths.learned.figures)
        self.figures.figures("uellm_scheduler_", help_texts.SCHEDULER, self.dispatcher.figures)
        self.figures.metrics.append(self.dispatcher.seconds)
        gauge("uellm_adapter_served", "1 while the engine serves it.", self._served_adapters, "adapter")
        gauge("uellm_config_bad", "1 while the configuration file is refused.", lambda: self.settings.error is not None)

    def _running(self) -> RunningReport:
        found = self.settings.running()
        return replace(found, adapters=self.adapters.loaded, failed_adapters=self.adapters.failed)

    def _served_adapters(self) -> dict[Labels, float]:
        loaded = self.adapters.loaded
        return {(each.name,): each.name in loaded for each in self.settings.current.adapters}

    def _info(self) -> dict[Labels, float]:
        current = self.settings.current
        return {(current.model, __version__, current.options.policy): 1}

    def _queued(self) -> dict[Labels, float]:
        depths = dict.fromkeys(self.settings.current.classes, 0) | self.dispatcher.queued_by_class()
        return {(name,): depth for name, depth in depths.items()}

    def _active(self) -> float:
        return self.drain.active

    def _characters_per_token(self) -> float:
        return self.proxy.terms.ratio.characters_per_token

    def _template_tokens(self) -> float:
        return self.proxy.terms.ratio.template_tokens


async def serve(options: SidecarOptions, on_started: Callable[[Sidecar], None]) -> None:
    """Run until SIGTERM or SIGINT, then drain; a second signal ends at once. Only after SIGTERM it lingers."""
    prepare()
    ending = Ending()
    async with Sidecar(options) as sidecar:
        on_started(sidecar)
        first = await ending.first()
        LOG.info("draining %d requests", sidecar.drain.active)
        await ending.unless_again(sidecar.stop(linger=first is signal.SIGTERM))
