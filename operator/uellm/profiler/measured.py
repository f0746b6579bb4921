"""What the measuring pods wrote on this node, as far as it is about the GPUs that are there and can be believed.

Figures count while the GPU has the driver and the power limit that they were measured under. Those of a CPU count only
for simulated GPUs whose description asks for them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uellm.api import parse
from uellm.api.gpunodeprofile import LinkProfile, Measured
from uellm.documents import UnreadableDocument
from uellm.errors import BadInput
from uellm.hardware.products import product_of
from uellm.measuring.document import NAME, DeviceRecord, MeasurementDocument, MeasuringTerms
from uellm.measuring.store import read_document
from uellm.profiler.sample import Sample

MOST_TIMES = 10.0
"""A rate that is so many times the product's is a mistake."""
_TEXT, _SENTENCE, _FAILURES, _TIMES = 64, 1024, 16, 64  # of the API's types


@dataclass(frozen=True)
class Believed:
    """What the profile shows of a document."""

    devices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """`measured`, by uuid."""
    links: Mapping[tuple[str, ...], Mapping[str, Any]] = field(default_factory=dict)
    measurement: Mapping[str, Any] | None = None
    """`status.measurement`."""


class MeasurementFile:
    """The document of a directory, read again when it has changed."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._version: tuple[int, ...] | None = None
        self._document: MeasurementDocument | None = None
        self._problem = ""

    def believed(self, sample: Sample) -> Believed:
        """What counts for the GPUs of a sample."""
        self._read()
        if not sample.measured_on:
            return Believed()
        if self._document is None:
            asked = {"on": sample.measured_on} if self._problem or sample.measured_on == "CPU" else None
            return Believed(measurement=asked and {**asked, **_failures([self._problem])})
        return believed(self._document, sample)

    def _read(self) -> None:
        if self._directory is None:
            return
        try:
            stat = os.lstat(self._directory / NAME)
            version = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        except OSError:
            version = (0, 0, 0)
        if version == self._version:
            return
        self._version, self._problem = version, ""
        try:
            self._document = read_document(self._directory)
        except UnreadableDocument as error:
            self._document, self._problem = None, str(error)


def believed(document: MeasurementDocument, sample: Sample) -> Believed:
    """What of a document counts for the GPUs of a sample. Pure."""
    if document.on != sample.measured_on:
        refusal = f"figures of a {document.on} are not used: these are to be measured on a {sample.measured_on}"
        return Believed(measurement={"on": sample.measured_on, **_failures([refusal])})
    present = {device["uuid"]: device for device in sample.devices if not device.get("mig")}
    refusals: list[str] = []
    devices: dict[str, Mapping[str, Any]] = {}
    for uuid, record in document.devices.items():
        device = present.get(uuid)
        if device is None or not record.measured_at:
            continue
        entry, other_terms = _measured(record), record.terms.difference(_terms(device, sample))
        if problem := other_terms or _problem(Measured, entry) or _incredible(record.figures, device):
            refusals.append(f"the figures of {uuid} are not used: {problem}")
        else:
            devices[uuid] = entry
    links: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for (a, b), figures in document.links.items():
        if not (figures and {a, b} <= devices.keys()):
            continue
        entry = _known(figures, LinkProfile)
        if problem := _problem(LinkProfile, {"a": a, "b": b, **entry}) or _too_fast(entry, present[a]):
            refusals.append(f"the figures of the link from {a} to {b} are not used: {problem}")
        else:
            links[a, b] = entry
    return Believed(devices, links, _measurement(document, devices.keys(), [*document.failures, *refusals]))


def _terms(device: Mapping[str, Any], sample: Sample) -> MeasuringTerms:
    # A description has a driver and limits of its own, which the CPU knows nothing of.
    return MeasuringTerms(sample.driver_version, device.get("powerLimitWatts"))


def _measured(record: DeviceRecord) -> dict[str, Any]:
    entry = {
        **_known(record.figures, Measured),
        "powerLimitWatts": record.terms.power_limit_watts,
        "smClockMegahertz": record.clocks.sm_megahertz,
        "memoryClockMegahertz": record.clocks.memory_megahertz,
        "measuredAt": record.measured_at,
    }
    return {name: value for name, value in entry.items() if value is not None}


def _known(figures: Mapping[str, int], type_: type[Measured] | type[LinkProfile]) -> dict[str, Any]:
    """Without fields that the API does not have: its server would refuse the profile."""
    aliases = {field.alias for field in type_.model_fields.values()}
    return {name: value for name, value in figures.items() if name in aliases}


def _problem(type_: type[Measured] | type[LinkProfile], entry: Mapping[str, Any]) -> str:
    try:
        parse(type_, dict(entry))
    except BadInput as error:
        return str(error)
    return ""


def _incredible(figures: Mapping[str, int], device: Mapping[str, Any]) -> str:
    """A figure that no GPU of the product can reach, as a sentence; empty for none."""
    product = product_of(device.get("product", ""))
    if product is None:
        return ""
    rates = {
        "bf16GigaflopsPerSecond": product.bf16_flops_per_s / 1e9,
        "fp16GigaflopsPerSecond": product.bf16_flops_per_s / 1e9,
        "fp8GigaflopsPerSecond": (product.fp8_flops_per_s or product.bf16_flops_per_s) / 1e9,
        "memoryBytesPerSecond": product.memory_bytes_per_s,
    }
    found = (_above(name, figures.get(name, 0), rate, product.name) for name, rate in rates.items())
    return next(filter(None, found), "")


def _too_fast(figures: Mapping[str, int], device: Mapping[str, Any]) -> str:
    product = product_of(device.get("product", ""))
    if product is None:
        return ""
    return _above("bytesPerSecond", figures.get("bytesPerSecond", 0), product.memory_bytes_per_s, product.name)


def _above(name: str, figure: int, rate: float, product: str) -> str:
    if figure <= MOST_TIMES * rate:
        return ""
    return f"{name} is {figure:.3g}, more than {MOST_TIMES:.0f} times what a {product} reaches ({rate:.3g})"


def _measurement(document: MeasurementDocument, uuids: Set[str], problems: list[str]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "on": document.on,
        "request": document.request[:_TEXT],
        "finished": document.finished[:_TEXT],
        "torchVersion": document.torch_version[:_TEXT],
        "cudaVersion": document.cuda_version[:_TEXT],
        "allReduce": list(_all_reduce(document, uuids))[:_TIMES],
    }
    return {**{name: value for name, value in entry.items() if value}, **_failures(problems)}


def _all_reduce(document: MeasurementDocument, uuids: Set[str]) -> Iterator[dict[str, int]]:
    shown: dict[int, Mapping[int, int]] = {}
    for group, times in document.groups.items():
        if set(group) <= uuids:
            shown[len(group)] = times
    for gpus, times in shown.items():
        for size, nanoseconds in times.items():
            if 2 <= gpus <= 64 and 1 <= size <= 2**40 and 1 <= nanoseconds <= 10**12:
                yield {"gpus": gpus, "bytes": size, "nanoseconds": nanoseconds}


def _failures(problems: list[str]) -> dict[str, list[str]]:
    kept = [problem[:_SENTENCE] for problem in problems if problem]
    return {"failures": kept[-_FAILURES:]} if kept else {}
