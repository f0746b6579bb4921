"""Carries the work out, one task after the other, and publishes the document after each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from uellm.errors import CannotBeDone
from uellm.measuring import figures
from uellm.measuring.all_reduce import group_times
from uellm.measuring.device_list import clocks_under
from uellm.measuring.document import Clocks, DeviceRecord, MeasurementDocument, MeasuringTerms, On
from uellm.measuring.figures import DECODE_ROWS, Sizes
from uellm.measuring.work import ALL_REDUCE, DEVICE_TASKS, LINK, PRODUCTS, MeasuringTask, tasks_left

ON_GPU = Sizes()
ON_CPU = Sizes(matrix=512, copy_bytes=2**26, seconds=0.1)
"""For simulated devices, whose figures are those of this CPU: small, because it multiplies bfloat16 slowly."""
LINK_SECONDS = 0.1
"""For each of the two figures of a link: eight GPUs have 56."""

Publish = Callable[[MeasurementDocument], None]


def now() -> str:
    """The time as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Bench:
    """The devices of this container, as torch numbers them."""

    torch: Any
    on: On
    terms: Mapping[str, MeasuringTerms]
    program: Sequence[str]
    """How this program is started, for the processes of groups."""
    sizes: Sizes = ON_GPU

    def device(self, uuid: str) -> str:
        """Torch's name of a device."""
        return "cpu" if self.on == "CPU" else f"cuda:{list(self.terms).index(uuid)}"

    def of_device(self, what: str, uuid: str) -> figures.Figures:
        """The figures of one task."""
        torch, device, sizes = self.torch, self.device(uuid), self.sizes
        if what in PRODUCTS:
            short = replace(sizes, seconds=sizes.seconds / 2)
            large = figures.product_figures(torch, device, what, sizes.matrix, sizes)
            return large | figures.product_figures(torch, device, what, DECODE_ROWS, short, suffix="Decode")
        measure = {"memory": figures.memory_figures, "host": figures.host_figures, "launch": figures.launch_figures}
        return measure[what](torch, device, sizes)

    def of_link(self, a: str, b: str) -> figures.Figures:
        """The figures of a link."""
        seconds = min(LINK_SECONDS, self.sizes.seconds)
        return figures.link_figures(
            self.torch, self.device(a), self.device(b), copy_bytes=self.sizes.copy_bytes, seconds=seconds
        )

    def clocks(self, uuid: str) -> Clocks:
        """The clocks of a GPU while it multiplies."""
        if self.on == "CPU":
            return Clocks()
        device = self.device(uuid)
        run, sync = (
            figures.bf16_product(self.torch, device, self.sizes.matrix),
            figures.synchroniser(self.torch, device),
        )

        def load() -> None:
            run()
            sync()

        return clocks_under(load, uuid)


def carry_out(bench: Bench, document: MeasurementDocument, publish: Publish) -> MeasurementDocument:
    """Everything that is left. What cannot be measured is noted; a device is tried again by the next process."""
    for task in list(tasks_left(document, list(bench.terms))):
        document = _after(bench, task, document)
        publish(document)
    return document


def _after(bench: Bench, task: MeasuringTask, document: MeasurementDocument) -> MeasurementDocument:
    print(f"measuring {task}", file=sys.stderr, flush=True)
    try:
        if task.what == LINK:
            a, b = task.devices
            return replace(document, links={**document.links, (a, b): bench.of_link(a, b)})
        if task.what == ALL_REDUCE:
            times = group_times(bench.program, len(task.devices), bench.on)
            return replace(document, groups={**document.groups, task.devices: times})
        return _with_figures(bench, task, document, bench.of_device(task.what, task.devices[0]))
    except (RuntimeError, CannotBeDone) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return _without_figures(bench, task, document.with_failure(f"{task}: {reason[0]}"))


def _without_figures(bench: Bench, task: MeasuringTask, document: MeasurementDocument) -> MeasurementDocument:
    if task.what == LINK:
        a, b = task.devices
        return replace(document, links={**document.links, (a, b): {}})
    if task.what == ALL_REDUCE:
        return replace(document, groups={**document.groups, task.devices: {}})
    return _with_figures(bench, task, document, {}, done=False)


def _with_figures(
    bench: Bench, task: MeasuringTask, document: MeasurementDocument, found: Mapping[str, int], *, done: bool = True
) -> MeasurementDocument:
    [uuid] = task.devices
    record = document.devices.get(uuid) or DeviceRecord(uuid, bench.terms[uuid])
    if task.what == PRODUCTS[0] and found:
        record = replace(record, clocks=bench.clocks(uuid))
    record = replace(
        record,
        done=(*record.done, task.what) if done else record.done,
        figures={**record.figures, **found},
    )
    ended = task.what == DEVICE_TASKS[-1] or set(DEVICE_TASKS) <= set(record.done)
    if ended and has_rates(record.figures):
        record = replace(record, measured_at=now())
    return document.with_device(record)


def has_rates(figures: Mapping[str, int]) -> bool:
    """Whether plans can do with these figures of a device."""
    return "memoryBytesPerSecond" in figures and any(f"{name}GigaflopsPerSecond" in figures for name in PRODUCTS)
