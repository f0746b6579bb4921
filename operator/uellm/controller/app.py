"""The operator's process: lease, cache, watches, queue and planning worker put together."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import kopf

from uellm.controller import handlers, memory, resync
from uellm.controller.lease import DURATION_S, Lease
from uellm.controller.measuring import MeasuringKeeper
from uellm.controller.metrics import ControllerMetrics, ControllerState
from uellm.controller.node_classes import NodeClassKeeper
from uellm.controller.optional_watch import OptionalWatch
from uellm.controller.probes import probes_app
from uellm.controller.queue import DirtyQueue
from uellm.controller.step_keeper import StepKeeper
from uellm.controller.watcher import Watcher
from uellm.controller.watches import Watches
from uellm.kube import Kube
from uellm.kube.kinds import NODEPOOL
from uellm.kube.transport import REQUEST_TIMEOUT_S
from uellm.metrics.server import WebListener
from uellm.reconcile.apply import Applier
from uellm.reconcile.cache import Cache
from uellm.reconcile.children import Images
from uellm.reconcile.download.downloads import Downloads
from uellm.reconcile.event_writer import EventWriter
from uellm.reconcile.inspection.inspections import Inspections
from uellm.reconcile.measuring.settings import MeasuringSettings
from uellm.reconcile.model_claim import NodeCache
from uellm.reconcile.names import Key
from uellm.reconcile.node_pools import NodePools
from uellm.reconcile.optional_kinds import OPTIONAL_KINDS
from uellm.reconcile.planning.planning import Planning
from uellm.reconcile.planning.worker import PLANNING_TIMEOUT_S, Workers
from uellm.reconcile.pods.collectors import Collectors
from uellm.reconcile.pods.sidecar_client import SidecarClient
from uellm.reconcile.reconciler import Reconciler
from uellm.reconcile.stale_profiles import ProfileAges
from uellm.reconcile.step_times.store import StepStore

logger = logging.getLogger(__name__)

# Passes at a time. Most of the time they wait for the API server, or for a pod that a network policy hides.
WORKERS = 32
# Besides, for what a person has just changed.
URGENT_WORKERS = 4
# Planners at a time, each in a process of its own.
PLANNERS = 2
# A pass waits for no search, but it may wait for several calls of the API server, and for one rendering.
LONGEST_PASS_S = 5 * REQUEST_TIMEOUT_S + PLANNING_TIMEOUT_S
LOOK_AT_PROFILES_S = 15.0


@dataclass(frozen=True)
class ControllerOptions:
    """How the operator runs."""

    images: Images
    inspector_image: str
    """Of the pods that look models up, or copy them."""
    namespace: str
    """Namespace of the Lease."""
    identity: str
    health_host: str | None = None
    """Address of the probes and metrics; None for every one of the machine."""
    health_port: int = 8080
    remember_node_classes: bool = False
    """Make a GPUNodeClass of every kind of node that is seen."""
    node_cache: NodeCache | None = None
    """Where nodes keep models; None for nowhere."""
    gateway_namespaces: frozenset[str] | None = None
    """Those whose services the gateway serves; None for all."""
    measuring: MeasuringSettings | None = None
    """Of the pods that measure GPUs; None for none."""


async def serve(options: ControllerOptions) -> None:
    """Run until SIGTERM or SIGINT. Raises LeaseLost, and KubeError where the API server refuses us."""
    task = asyncio.current_task()
    assert task is not None
    # Until kopf installs its own. Without a handler, the first process of a container ignores these signals.
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        async with AsyncExitStack() as stack:
            await _Operator(options, stack).run()
    except asyncio.CancelledError:
        logger.info("ended by a signal")


class _Operator:
    def __init__(self, options: ControllerOptions, stack: AsyncExitStack) -> None:
        self._options = options
        self._stack = stack
        self._cache = Cache()
        self._watching = asyncio.Event()

    async def run(self) -> None:
        # The lease has a client of its own: its renewals wait for no other request, and its writes take the lease.
        metrics = ControllerMetrics()
        observe = metrics.api_calls.observe
        lease_kube = await self._stack.enter_async_context(await Kube.connect(observe=observe))
        lease = Lease(lease_kube, self._options.namespace, self._options.identity)
        kube = await self._stack.enter_async_context(await Kube.connect(writable_for=lease.writable_s, observe=observe))
        sidecars = await self._stack.enter_async_context(SidecarClient())
        worker = self._stack.enter_context(Workers(PLANNERS))
        steps = StepStore()
        planning = Planning(
            self._cache,
            worker,
            count=metrics.planned,
            workers=PLANNERS,
            on_planned=lambda key: queue.mark(key),
            steps=steps,
            engine_image=self._options.images.engine,
        )
        step_keeper = StepKeeper(kube, steps, self._options.namespace)
        events = EventWriter(kube, later=True)
        applier = Applier(kube, self._cache, instance=self._options.identity, events=events)
        clock = asyncio.get_running_loop().time
        collectors, pools = Collectors.of(sidecars, clock), NodePools(lambda: kube.list(NODEPOOL), clock)
        inspections = Inspections(applier, sidecars.model, self._options.inspector_image)
        downloads = Downloads(
            applier,
            sidecars.download,
            self._options.inspector_image,
            node_cache=self._options.node_cache,
            fetch_from_node=sidecars.node_copy,
        )
        reconciler = Reconciler(
            self._cache,
            planning,
            collectors,
            applier,
            self._options.images,
            inspections,
            downloads,
            node_pools=pools,
            gateway_namespaces=self._options.gateway_namespaces,
        )
        queue: DirtyQueue[Key] = DirtyQueue(reconciler.reconcile, metrics)
        watcher = Watcher(self._cache, queue.mark, planning.waiting)
        state = ControllerState(
            self._cache,
            queue_depth=lambda: len(queue),
            plans_waiting=lambda: planning.in_line,
            is_leader=lambda: lease.writable_s() > 0,
            cache_ages_s=watcher.ages_s,
        )
        metrics.show(state)
        await self._stack.enter_async_context(self._health(lease, queue, metrics))
        await lease.acquire()
        self._stack.push_async_callback(lease.release)
        logger.info("lease held by %s", lease.identity)
        watches = Watches(kube, watcher)

        async def lead() -> None:
            await resync.fill_patiently(kube, self._cache, resync.FIRST_KINDS)
            await _until_one_ends(*watches.follow(), start())

        async def start() -> None:
            await watches.synced()
            watcher.on_lists()
            planning.promises.restore()
            await step_keeper.step()
            watcher.mark_all()
            await _until_one_ends(
                events.keep(),
                step_keeper.keep(),
                NodeClassKeeper(kube, self._cache, remember=self._options.remember_node_classes).keep(),
                _resync(kube, self._cache, watcher, collectors, queue),
                _find_stale_profiles(self._cache, watcher, clock),
                memory.give_back(),
                *(OptionalWatch(kube, self._cache, watcher, kind).keep() for kind in OPTIONAL_KINDS),
                *self._measuring(kube),
                *(queue.work_off() for _ in range(WORKERS)),
                *(queue.work_off(only_first=True) for _ in range(URGENT_WORKERS)),
                kopf.operator(
                    registry=handlers.registry(watcher),
                    settings=handlers.settings(),
                    clusterwide=True,
                    standalone=True,
                    # Otherwise kopf looks up the user's name, and a container's numeric user has none.
                    identity=self._options.identity,  # type: ignore[arg-type] # a NewType of str that kopf hides
                    ready_flag=self._watching,
                ),
            )

        await _until_one_ends(lease.keep(), lead())

    def _measuring(self, kube: Kube) -> list[Coroutine[Any, Any, None]]:
        settings = self._options.measuring
        if settings is None:
            return []
        return [MeasuringKeeper(kube, self._cache, settings, instance=self._options.identity).keep()]

    def _health(self, lease: Lease, queue: DirtyQueue[Key], metrics: ControllerMetrics) -> WebListener:
        def lease_is_fresh() -> str | None:
            age_s = lease.age_s
            return f"not renewed for {age_s:.0f} s" if age_s is not None and age_s > DURATION_S else None

        def no_pass_hangs() -> str | None:
            longest_s = queue.longest_work_s
            return f"a pass has been at work for {longest_s:.0f} s" if longest_s > LONGEST_PASS_S else None

        def is_ready() -> bool:
            # An operator that stands by is ready: it takes over at once.
            return self._watching.is_set() or lease.standing_by

        checks = {"lease": lease_is_fresh, "queue": no_pass_hangs}
        host, port = self._options.health_host, self._options.health_port
        return WebListener(probes_app(checks, is_ready, metrics.registry), host, port, purpose="probes and metrics")


async def _resync(kube: Kube, cache: Cache, watcher: Watcher, collectors: Collectors, queue: DirtyQueue[Key]) -> None:
    # kopf does not tell what vanished between our first list and its own.
    await asyncio.sleep(resync.FIRST_S)
    queue.mark_all(await resync.changed_services(kube, cache))
    while True:
        await asyncio.sleep(resync.next_in_s())
        await resync.fill_patiently(kube, cache)
        watcher.on_lists()
        pods = {pod["metadata"]["uid"] for key in cache.service_keys() for pod in cache.pods(key)}
        collectors.keep(pods)
        watcher.mark_all()


async def _find_stale_profiles(cache: Cache, watcher: Watcher, clock: Callable[[], float]) -> None:
    ages = ProfileAges()
    while True:
        before = cache.stale_profiles
        if cache.set_stale_profiles(ages.stale(cache.profiles(), clock())):
            for name in cache.stale_profiles.keys() - before.keys():
                logger.warning("node %s is not planned on: %s", name, cache.stale_profiles[name])
            watcher.mark_all()
        await asyncio.sleep(LOOK_AT_PROFILES_S)


async def _until_one_ends(*coroutines: object) -> None:
    """Run all until the first ends or fails; then cancel the others, and raise its error."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]  # type: ignore[call-overload]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
