"""What was measured on a node, as one JSON document. Pure.

    {"version": 1, "on": "GPU", "request": "", "torchVersion": "2.11.0", "cudaVersion": "13.0", "finished": "..",
     "devices": [{"uuid", "done": ["bf16", ..], "figures": {"bf16GigaflopsPerSecond": ..}, "measuredAt",
                  "driverVersion", "powerLimitWatts", "smClockMegahertz", "memoryClockMegahertz"}],
     "links": [{"a", "b", "bytesPerSecond", "latencyNanoseconds"}],
     "groups": [{"devices": [uuid, ..], "allReduce": [{"bytes", "nanoseconds"}]}],
     "failures": ["fp8 of GPU-..: why"]}

A device has `measuredAt` when all of its figures are there, or have been tried and the rates are there. A link or a
group without figures could not be measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from uellm.documents import VERSION, reading

NAME = "measurements.json"
MOST_FAILURES = 16
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
"""Of `measuredAt`, in UTC."""

On = Literal["GPU", "CPU"]


@dataclass(frozen=True, slots=True)
class MeasuringTerms:
    """Under what a device is measured: figures of other terms do not hold."""

    driver_version: str = ""
    power_limit_watts: int | None = None

    def agree(self, other: MeasuringTerms) -> bool:
        """Whether they are the same as far as both are known."""
        return not self.difference(other)

    def difference(self, now: MeasuringTerms) -> str:
        """What is otherwise now, in words; empty where both are the same as far as they are known."""
        if "" not in (self.driver_version, now.driver_version) and self.driver_version != now.driver_version:
            return f"they were measured with driver {self.driver_version}, and it is {now.driver_version} now"
        own, other = self.power_limit_watts, now.power_limit_watts
        # NVML and nvidia-smi round differently.
        if own is not None and other is not None and abs(own - other) > 1:
            return f"they were measured under a power limit of {own} W, and it is {other} W now"
        return ""


@dataclass(frozen=True, slots=True)
class Clocks:
    """Clocks of a device while it multiplied, in MHz; None where the driver did not tell."""

    sm_megahertz: int | None = None
    memory_megahertz: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """What was measured of one device."""

    uuid: str
    terms: MeasuringTerms = MeasuringTerms()
    clocks: Clocks = Clocks()
    done: tuple[str, ...] = ()
    """The benchmarks that were carried out."""
    figures: Mapping[str, int] = field(default_factory=dict)
    """With the fields of `status.devices[].measured`."""
    measured_at: str = ""
    """When the last of them was done; empty until then."""

    def to_dict(self) -> dict[str, Any]:
        """Its entry of the document."""
        entry = {
            "uuid": self.uuid,
            "driverVersion": self.terms.driver_version or None,
            "powerLimitWatts": self.terms.power_limit_watts,
            "smClockMegahertz": self.clocks.sm_megahertz,
            "memoryClockMegahertz": self.clocks.memory_megahertz,
            "done": list(self.done),
            "figures": dict(self.figures),
            "measuredAt": self.measured_at or None,
        }
        return {name: value for name, value in entry.items() if value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DeviceRecord:
        """Read an entry. Raises KeyError without a uuid, ValueError for a number or a time that is none."""
        return cls(
            str(data["uuid"]),
            MeasuringTerms(str(data.get("driverVersion") or ""), _integer(data.get("powerLimitWatts"))),
            Clocks(_integer(data.get("smClockMegahertz")), _integer(data.get("memoryClockMegahertz"))),
            tuple(map(str, data.get("done") or ())),
            _figures(data.get("figures") or {}),
            _time(data.get("measuredAt") or ""),
        )


@dataclass(frozen=True, slots=True)
class MeasurementDocument:
    """Everything that was measured on a node."""

    on: On = "GPU"
    request: str = ""
    """The user's request that it answers."""
    torch_version: str = ""
    cuda_version: str = ""
    finished: str = ""
    """The mark of the last pod that had nothing left to do."""
    devices: Mapping[str, DeviceRecord] = field(default_factory=dict)
    links: Mapping[tuple[str, str], Mapping[str, int]] = field(default_factory=dict)
    groups: Mapping[tuple[str, ...], Mapping[int, int]] = field(default_factory=dict)
    """Nanoseconds of an all-reduce by its bytes."""
    failures: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "version": VERSION,
            "on": self.on,
            "request": self.request,
            "torchVersion": self.torch_version,
            "cudaVersion": self.cuda_version,
            "finished": self.finished,
            "devices": [record.to_dict() for record in self.devices.values()],
            "links": [{"a": a, "b": b, **figures} for (a, b), figures in self.links.items()],
            "groups": [
                {"devices": list(group), "allReduce": [{"bytes": b, "nanoseconds": ns} for b, ns in times.items()]}
                for group, times in self.groups.items()
            ],
            "failures": list(self.failures),
        }

    @classmethod
    def from_dict(cls, document: Any) -> MeasurementDocument:
        """Read the JSON form. Raises UnreadableDocument."""
        with reading(NAME, document) as data:
            if data["on"] not in ("GPU", "CPU"):
                raise ValueError(f"it was measured on {data['on']!r}")
            records = [DeviceRecord.from_dict(entry) for entry in data.get("devices") or ()]
            return cls(
                on=data["on"],
                request=str(data.get("request") or ""),
                torch_version=str(data.get("torchVersion") or ""),
                cuda_version=str(data.get("cudaVersion") or ""),
                finished=str(data.get("finished") or ""),
                devices={record.uuid: record for record in records},
                links={
                    (str(link["a"]), str(link["b"])): _figures({k: v for k, v in link.items() if k not in ("a", "b")})
                    for link in data.get("links") or ()
                },
                groups={
                    tuple(map(str, group["devices"])): {
                        int(time["bytes"]): int(time["nanoseconds"]) for time in group["allReduce"]
                    }
                    for group in data.get("groups") or ()
                },
                failures=tuple(map(str, data.get("failures") or ())),
            )

    def with_device(self, record: DeviceRecord) -> MeasurementDocument:
        """With another record of one device."""
        return replace(self, devices={**self.devices, record.uuid: record})

    def with_failure(self, what: str) -> MeasurementDocument:
        """With a sentence about what could not be measured; the last ones are kept."""
        return replace(self, failures=(*self.failures, what)[-MOST_FAILURES:])

    def without(self, uuids: frozenset[str]) -> MeasurementDocument:
        """Without all that these devices have a part in."""
        return replace(
            self,
            devices={uuid: record for uuid, record in self.devices.items() if uuid not in uuids},
            links={link: figures for link, figures in self.links.items() if uuids.isdisjoint(link)},
            groups={group: times for group, times in self.groups.items() if uuids.isdisjoint(group)},
        )


def _time(value: Any) -> str:
    """A time as Kubernetes writes it, or empty. The API server would refuse the profile for another text."""
    if value:
        datetime.strptime(value, TIME_FORMAT)
    return str(value)


def _integer(value: Any) -> int | None:
    if value is not None and type(value) is not int:
        raise ValueError(f"{value!r:.40} is no integer")
    return value


def _figures(entry: Mapping[str, Any]) -> dict[str, int]:
    return {str(name): whole for name, value in entry.items() if (whole := _integer(value)) is not None}
