"""Decides which GPU or link to measure next, and keeps the results."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from uellm.errors import CannotBeDone
from uellm.profiler.sample import NVML, Sample

PROCESS_TIMEOUT_S = 120.0
Target = tuple[str, ...]
"""A device `(uuid,)`, or a link `(a, b)`."""


class NotMeasured(CannotBeDone):
    """A measurement failed; the message is the cause."""


class Bench:
    """Measurements of one node's GPUs. Devices that a pod has or a process uses are not measured."""

    def __init__(self) -> None:
        self.devices: dict[str, Mapping[str, Any]] = {}
        self.links: dict[Target, Mapping[str, Any]] = {}
        self._tried: set[Target] = set()
        self._made_under: dict[str, tuple[Any, ...]] = {}

    def adopt(self, status: Mapping[str, Any]) -> None:
        """Take over the measurements of an earlier process from the profile's status."""
        if status.get("source") != NVML:
            return
        driver_version = status.get("driverVersion", "")
        for device in status.get("devices") or ():
            if device.get("measured"):
                self.devices[device["uuid"]] = device["measured"]
                self._made_under[device["uuid"]] = _terms(device, driver_version)
        for link in status.get("links") or ():
            figures = {key: link[key] for key in ("bytesPerSecond", "latencyNanoseconds") if key in link}
            if figures:
                self.links[link["a"], link["b"]] = figures

    def check(self, sample: Sample) -> None:
        """Drop the measurements of devices whose driver or power limit has changed."""
        for device in sample.devices:
            uuid, terms = device["uuid"], _terms(device, sample.driver_version)
            if self._made_under.setdefault(uuid, terms) == terms:
                continue
            self._made_under[uuid] = terms
            self.devices.pop(uuid, None)
            for target in [link for link in self.links if uuid in link]:
                del self.links[target]
            self._tried = {target for target in self._tried if uuid not in target}

    def next_target(self, sample: Sample, pod_uids: Mapping[str, str]) -> Target | None:
        """An idle device without measurement, else a link between idle devices."""
        free = idle(sample, pod_uids)
        done = self._tried | {(uuid,) for uuid in self.devices} | self.links.keys()
        wanted: list[Target] = [*((uuid,) for uuid in free)]
        wanted += [(link["a"], link["b"]) for link in sample.links if {link["a"], link["b"]} <= set(free)]
        return next((target for target in wanted if target not in done), None)

    def record(self, target: Target, figures: Mapping[str, Any] | None, now: str) -> None:
        """Record a measurement, or None for a target that cannot be measured; it is not tried again."""
        self._tried.add(target)
        if figures is None:
            return
        if len(target) == 1:
            self.devices[target[0]] = {**figures, "measuredAt": now}
        else:
            self.links[target] = figures


def available() -> bool:
    """Whether torch is installed. Only the measuring process finds out whether it can use a GPU."""
    return importlib.util.find_spec("torch") is not None


def idle(sample: Sample, pod_uids: Iterable[str]) -> list[str]:
    """UUIDs of whole, healthy devices that no pod has and no process uses, in order."""
    taken = {*pod_uids, *sample.busy}
    return [device["uuid"] for device in sample.devices if device["uuid"] not in taken and not device.get("mig")]


async def run(target: Sequence[str]) -> dict[str, int]:
    """Measure in a separate process. Raises NotMeasured."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "uellm.profiler.measure",
        *target,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(target)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PROCESS_TIMEOUT_S):
            output, errors = await process.communicate()
    except TimeoutError:
        raise NotMeasured(f"not done in {PROCESS_TIMEOUT_S:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        lines = errors.decode("utf-8", "replace").strip().splitlines() or [f"exit status {process.returncode}"]
        raise NotMeasured(lines[-1])
    figures: dict[str, int] = json.loads(output)
    return figures


def _terms(device: Mapping[str, Any], driver_version: str) -> tuple[Any, ...]:
    return driver_version, device.get("powerLimitWatts")
