"""The loops that keep a node's GPUNodeProfile true.

    look      source ------- sample, every `interval_s`            \
    poll      kubelet ------ who has which device, every `poll_s`   > what was seen --> write, where it differs
    restore   API server --- the profile was deleted               /
    network   others ------- the network to their nodes, daily    /

Only changes are written, and a heartbeat (`observedAt`) every `heartbeat_s`. Readers hold a watch: no event means that
nothing changed, and an old `observedAt` means that the profiler is gone.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from uellm.api.node_labels import own_labels
from uellm.errors import BadInput
from uellm.hardware import Device
from uellm.kube import Forbidden, KubeError, NotFound
from uellm.profiler.allocations import Allocations, allocations
from uellm.profiler.device_names import Names, unknown_names
from uellm.profiler.events import Turn, turns
from uellm.profiler.measured import MeasurementFile
from uellm.profiler.metrics import ProfilerMetrics
from uellm.profiler.network.keeping import NetworkKeeper
from uellm.profiler.offered import KubeletOffer
from uellm.profiler.outside_memory import OutsideMemory
from uellm.profiler.podresources import Held, Kubelet, KubeletSilent, Listed
from uellm.profiler.process import in_daemon_thread, now
from uellm.profiler.sample import SIMULATED, DriverChanged, NoGPUs, Sample, Source, SourceError
from uellm.profiler.status import Seen, Status, changes, compose, device_states, facts, lost, pod_uids_of, sample_of
from uellm.profiler.store import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Periods:
    """How often, in seconds."""

    interval_s: float = 10.0
    """Of observing the GPUs."""
    poll_s: float = 1.0
    """Of asking the kubelet for allocations: a call over a socket, without disk or network."""
    heartbeat_s: float = 120.0
    """Of writing a heartbeat: 0.0083 writes per second and node, below the 0.01 that an idle object may cost."""
    settle_s: float = 2.0
    """Of asking again while kubelet and API server disagree."""
    patience_s: float = 60.0
    """NVML counts as hanging after this time without an answer, which happens with some failing GPUs."""
    first_retry_s: float = 1.0
    longest_retry_s: float = 15.0


class Keeper:
    """Keeps one node's profile. `run` ends only if cancelled, or with an error that needs a new process."""

    def __init__(
        self,
        store: Store,
        source: Source,
        kubelet: Kubelet,
        metrics: ProfilerMetrics,
        *,
        measurements: MeasurementFile | None = None,
        measuring_namespace: str = "",
        network: NetworkKeeper | None = None,
        periods: Periods = Periods(),
    ) -> None:
        self._metrics = metrics
        self._store = store
        self._source = source
        self._kubelet = kubelet
        self._periods = periods
        self._wake = asyncio.Event()
        self._measurements = measurements or MeasurementFile(None)
        self._measuring_namespace = measuring_namespace
        self._network = network
        self._logged: dict[str, str] = {}
        # Observed.
        self._sample: Sample | None = None
        self._looked_at = ""
        self._trouble: SourceError | None = None
        self._listed: Listed | None = None
        self._offered = KubeletOffer()
        self._outside = OutsideMemory()
        # Derived and written.
        self._allocations = Allocations({}, settled=False)
        self._resolved: Held | None = None
        self._before: dict[str, Any] = {}
        self._written_at: float | None = None
        self._labels: dict[str, str] | None = None
        self._failures = 0

    async def run(self) -> None:
        """Keep the profile. Raises DriverChanged."""
        await self._begin()
        try:
            async with asyncio.TaskGroup() as tasks:
                for loop in (self._look, self._poll, self._restore, self._write):
                    tasks.create_task(loop())
                if self._network is not None:
                    tasks.create_task(self._network.run(self._wake.set))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _begin(self) -> None:
        while True:
            try:
                self._before = await self._store.read()
            except KubeError as error:
                await asyncio.sleep(self._retry_s(error))
            else:
                self._recovered("API server")
                if self._before:
                    self._metrics.due()
                self._allocations = Allocations(pod_uids_of(self._before), settled=False)
                self._offered.adopt(self._before)
                self._outside.adopt(self._before)
                if self._network is not None:
                    self._network.adopt(self._before)
                return

    async def _look(self) -> None:
        while True:
            look = in_daemon_thread(self._source.sample)
            await asyncio.wait({look}, timeout=self._periods.patience_s)
            if not look.done():
                self._in_trouble(SourceError("NoAnswer", f"no answer for {self._periods.patience_s:.0f} s"))
            try:
                self._sample = await look
            except DriverChanged:
                raise
            except SourceError as error:
                self._in_trouble(error)
            except BadInput as error:
                self._in_trouble(SourceError("BadDescription", str(error)))
            else:
                self._trouble = None
                self._metrics.source_fails(False)
                if self._sample.devices:
                    self._metrics.due()
                self._looked_at = now()
                self._recovered("source")
                if self._listed is not None:
                    self._outside.look(self._sample, {*self._allocations.pod_uids, *self._allocations.measured})
            await self._ask_what_is_offered()
            self._wake.set()
            await asyncio.sleep(self._periods.interval_s)

    async def _ask_what_is_offered(self) -> None:
        if self._sample is None:
            return
        present = [device["uuid"] for device in self._sample.devices]
        with suppress(KubeletSilent, KubeError):
            allocatable = await self._kubelet.allocatable()
            missing = self._offered.missing(allocatable, self._names(self._sample), present, time.monotonic())
            # Asked only then: a list from every node, every few seconds, would be a load for the API server.
            self._offered.judge(missing, await self._store.published() if missing else ())

    async def _poll(self) -> None:
        while True:
            try:
                listed = await self._kubelet.held()
            except KubeletSilent as error:
                self._say("kubelet", str(error))
            else:
                self._recovered("kubelet")
                if self._listed is None or listed.devices != self._listed.devices:
                    self._wake.set()
                self._listed = listed
            await asyncio.sleep(self._periods.poll_s)

    async def _restore(self) -> None:
        async for _ in self._store.deletions():
            logger.warning("the profile was deleted; writing it again")
            self._before = {}
            self._written_at = None
            self._wake.set()

    async def _write(self) -> None:
        wait_s = 0.0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._write_once()
            except KubeError as error:
                self._metrics.not_written()
                wait_s = self._retry_s(error)
            else:
                self._recovered("API server")
                wait_s = self._periods.heartbeat_s if self._allocations.settled else self._periods.settle_s

    async def _write_once(self) -> None:
        # While the source fails, the sample of an earlier process is used and marked as such.
        sample = self._sample or (sample_of(self._before) if self._trouble else None)
        # Without an answer from the kubelet every device would look free.
        if sample is None or self._listed is None:
            return
        heartbeat = self._written_at is None or time.monotonic() - self._written_at >= self._periods.heartbeat_s
        names = self._names(sample)
        await self._resolve(names.held(self._listed), heartbeat)
        status = compose(self._seen(sample, names), self._before, now(), observed_at=self._looked_at)
        if heartbeat or facts(status) != facts(self._before):
            await self._store.write(status)
            self._metrics.written(device_states(status), sum("measured" in each for each in status["devices"]))
            for change in changes(self._before, status):
                logger.info(change)
            turned = tuple(turns(self._before, status))
            self._before = status
            self._written_at = time.monotonic()
            await self._tell(turned)
        await self._label(status, again=heartbeat)

    def _names(self, sample: Sample) -> Names:
        return Names(sample, tuple(lost(sample, self._before)))

    async def _tell(self, turned: tuple[Turn, ...]) -> None:
        """Events inform people and are lost with the API server's own: the profile has the state."""
        try:
            if turned:
                await self._store.tell(turned)
        except KubeError as error:
            self._say("events", str(error))

    async def _label(self, status: Status, *, again: bool) -> None:
        """After the profile: the labels are the event that makes the scheduler try pods with it.

        `again`: also where they have not changed, in case that somebody removed them.
        """
        labels = own_labels(map(Device.from_dict, status["devices"]), simulated=status["source"] == SIMULATED)
        if labels == self._labels and not again:
            return
        try:
            await self._store.label(labels)
        except (Forbidden, NotFound) as error:
            # Where GPU Feature Discovery labels the nodes, alike GPUs need no labels of ours.
            self._say("node labels", f"{error}; nodes with unlike or simulated GPUs take no pods without them")
        else:
            self._recovered("node labels")
            if labels != self._labels:
                logger.info("labelled the node: %s", ", ".join(f"{key}={value}" for key, value in labels.items()))
        self._labels = labels

    async def _resolve(self, held: Held, heartbeat: bool) -> None:
        same = self._resolved is not None and replace(self._resolved, pods=held.pods) == held
        if same and self._allocations.settled and not heartbeat:
            return
        before = self._allocations
        self._allocations = allocations(
            held,
            await self._store.pods(),
            before.pod_uids,
            before.measuring,
            measuring_namespace=self._measuring_namespace,
        )
        self._resolved = held

    def _seen(self, sample: Sample, names: Names) -> Seen:
        unknown = names.unknown(self._listed.devices if self._listed else ())
        believed = self._measurements.believed(sample)
        remarks = [unknown_names(unknown), self._outside.sentence(sample)]
        if self._network is not None:
            remarks.append(self._network.sentence())
        return Seen(
            sample=sample,
            pod_uids=self._allocations.pod_uids,
            resource_names=self._offered.resource_names,
            shares=self._offered.shares,
            not_offered=self._offered.faults,
            outside_bytes=self._outside.bytes,
            remarks=tuple(filter(None, remarks)),
            network=() if self._network is None else self._network.entries(),
            measured=believed.devices,
            measured_links=believed.links,
            measurement=believed.measurement,
            trouble=self._trouble,
            heartbeat_s=self._periods.heartbeat_s,
        )

    def _in_trouble(self, error: SourceError) -> None:
        self._trouble = error
        # A node that never had GPUs lacks none.
        lacks_none = isinstance(error, NoGPUs) and not error.hidden and not self._before
        self._metrics.source_fails(not lacks_none)
        self._say("source", str(error))
        self._wake.set()

    def _retry_s(self, error: KubeError) -> float:
        self._say("API server", str(error))
        self._failures += 1
        longest_s = min(self._periods.longest_retry_s, self._periods.first_retry_s * 2.0 ** min(self._failures, 10))
        return max(error.retry_after_s or 0.0, longest_s * random.uniform(0.5, 1.0))

    def _say(self, who: str, text: str) -> None:
        if self._logged.get(who) != text:
            self._logged[who] = text
            logger.warning("%s: %s", who, text)

    def _recovered(self, who: str) -> None:
        if who == "API server":
            self._failures = 0
        if self._logged.pop(who, None) is not None:
            logger.info("%s: answers again", who)
