"""CEL selectors of a ResourceClaim that tell the GPUs that may serve a stage from all others.

Selectors say what a GPU is, not which one it is, so that every replica can use them, and so can a GPU that replaces
another or joins later. A GPU that differs in nothing that its driver publishes, such as one that a person excluded, is
left out by its uuid.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from uellm.hardware import DRA_DRIVER, Attribute, PublishedGpu
from uellm.planner.constants import UUIDS_PER_SELECTOR

PRODUCT = "productName"
CAPABILITY = "cudaComputeCapability"
_FURTHER = (CAPABILITY, "architecture", "brand")
"""Attributes that are used where product and memory do not suffice, in this order."""
_ATTRIBUTES = f'device.attributes["{DRA_DRIVER}"]'
_CAPACITY = f'device.capacity["{DRA_DRIVER}"]'


class DeviceCondition(Protocol):
    """One selector."""

    def matches(self, device: PublishedGpu) -> bool:
        """Whether the device satisfies it."""

    def cel(self) -> str:
        """Its expression."""


@dataclass(frozen=True, slots=True)
class HasAttribute:
    """An attribute has this value."""

    attribute: Attribute

    def matches(self, device: PublishedGpu) -> bool:
        """Whether the device satisfies it."""
        return device.attribute(self.attribute.name) == self.attribute

    def cel(self) -> str:
        """Its expression. An attribute that a device lacks would be an error, so it is asked for first."""
        name, kind, value = self.attribute
        found, wanted = f"{_ATTRIBUTES}.{name}", _text(value)
        same = f"{found}.compareTo(semver({wanted})) == 0" if kind == "version" else f"{found} == {wanted}"
        return f"has({found}) && {same}"


@dataclass(frozen=True, slots=True)
class HasMemory:
    """It has at least this much memory."""

    mebibytes: int

    def matches(self, device: PublishedGpu) -> bool:
        """Whether the device satisfies it."""
        return device.memory_bytes >= self.mebibytes << 20

    def cel(self) -> str:
        """Its expression."""
        return f'{_CAPACITY}.memory.compareTo(quantity("{self.mebibytes}Mi")) >= 0'


@dataclass(frozen=True, slots=True)
class IsNoneOf:
    """It is none of these."""

    uuids: tuple[str, ...]

    def matches(self, device: PublishedGpu) -> bool:
        """Whether the device satisfies it."""
        return device.uuid not in self.uuids

    def cel(self) -> str:
        """Its expression."""
        return f"!({one_of(self.uuids)})"


def conditions(
    able: Sequence[PublishedGpu], others: Sequence[PublishedGpu], least_memory_bytes: int
) -> tuple[DeviceCondition, ...]:
    """What all of `able` and none of `others` satisfy.

    `able`: GPUs of one product with at least the least memory, one or more; `others`: all other GPUs, none of which is
    among them.
    """
    # The product is always asked for: the plan was made for its speed.
    chosen: list[DeviceCondition] = [*_shared(able, PRODUCT), HasMemory(least_memory_bytes >> 20)]
    left = [device for device in others if _satisfies(device, chosen)]
    for name in _FURTHER:
        for condition in _shared(able, name):
            fewer = [device for device in left if condition.matches(device)]
            if len(fewer) < len(left):
                chosen.append(condition)
                left = fewer
    return (*chosen, *_none_of(sorted({device.uuid for device in left})))


def _none_of(uuids: Sequence[str]) -> list[IsNoneOf]:
    parts = (uuids[at : at + UUIDS_PER_SELECTOR] for at in range(0, len(uuids), UUIDS_PER_SELECTOR))
    return [IsNoneOf(tuple(part)) for part in parts]


def left_out(selectors: Sequence[str], unusable: Iterable[PublishedGpu]) -> tuple[str, ...]:
    """Further selectors, that leave out those of these GPUs which the `selectors` of a plan may admit."""
    asked = " ".join(selectors)
    named = (each.uuid for each in unusable if _may_be_admitted(each, asked) and _text(each.uuid) not in asked)
    return tuple(each.cel() for each in _none_of(sorted(set(named))))


def _may_be_admitted(device: PublishedGpu, asked: str) -> bool:
    """By its product alone: a GPU too many does no harm, and every plan asks for one where its GPUs have one."""
    product = device.attribute(PRODUCT)
    return product is None or f".{PRODUCT} == " not in asked or HasAttribute(product).cel() in asked


def one_of(uuids: Sequence[str]) -> str:
    """The expression that a device is one of these."""
    return f"{_ATTRIBUTES}.uuid in [{', '.join(map(_text, uuids))}]"


def _shared(devices: Sequence[PublishedGpu], name: str) -> list[HasAttribute]:
    """The condition of an attribute that all the devices have with the same value; none where there is no such."""
    values = {device.attribute(name) for device in devices}
    value = values.pop() if len(values) == 1 else None
    return [] if value is None else [HasAttribute(value)]


def _satisfies(device: PublishedGpu, chosen: Sequence[DeviceCondition]) -> bool:
    return all(condition.matches(device) for condition in chosen)


def _text(value: str) -> str:
    """A CEL string. JSON escapes the same characters; others must stay, because CEL knows no surrogate pairs."""
    return json.dumps(value, ensure_ascii=False)
