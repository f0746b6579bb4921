"""The placement problem in whole numbers, with its devices in classes of interchangeable ones.

Costs are integers in a fixed fine unit. So sums do not depend on their order, and equal costs compare as equal.
Two devices are interchangeable if they have the same room, the same speed and the same hops to and from every other
device. That is an equivalence relation, so the solver counts the devices of a class instead of naming them. Eight
identical GPUs then have nine subsets instead of 256.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from uellm.planner.placement.instance import Instance, Number, exact

# The unit of cost is this many bits below the smallest rate or hop, so rounding to it is far below float precision.
COST_BITS = 64


@dataclass(frozen=True, slots=True)
class Problem:
    """An instance in whole numbers: L layers, n devices in C classes.

    Indices c and d are classes, 0..C-1. Indices a and b are layer positions, 0..L; a stage a..b holds layers a..b-1.
    """

    layers: int
    """L."""
    work: tuple[int, ...]
    """[L + 1]: prefix sums of the layers' weight bytes."""
    memory: tuple[int, ...]
    """[L + 1]: prefix sums of the layers' weight and KV-cache bytes."""
    first: int
    """Bytes that the first stage holds besides its layers (embedding)."""
    last: int
    """Bytes that the last stage holds besides its layers (LM head)."""
    members: tuple[tuple[int, ...], ...]
    """[C]: indices into the instance's devices, in the order of their ids."""
    room: tuple[int, ...]
    """[C]: bytes that a device has for layers; may be negative."""
    rate: tuple[int, ...]
    """[C]: cost of one byte of work."""
    hop: tuple[tuple[int, ...], ...]
    """[C, C]: cost of a hop; it may be asymmetric."""
    byte: int
    """Scale of all sizes: 1, or the common denominator if an instance gives fractions of a byte."""
    unit: Fraction
    """Seconds (or the unit of the instance's latencies) in one unit of cost."""
    uniform: bool
    """Whether all layers have the same weight bytes and the same KV-cache bytes."""

    @property
    def classes(self) -> range:
        """Indices of the classes."""
        return range(len(self.members))

    @property
    def devices(self) -> int:
        """How many devices there are."""
        return sum(len(members) for members in self.members)

    def fits(self, c: int, a: int, b: int) -> bool:
        """Whether a device of class c has room for layers a..b-1 and what the ends of the pipeline add."""
        return self.need(a, b) <= self.room[c]

    def need(self, a: int, b: int) -> int:
        """Bytes that layers a..b-1 take on a device."""
        extra = (self.first if a == 0 else 0) + (self.last if b == self.layers else 0)
        return self.memory[b] - self.memory[a] + extra


def canonical(instance: Instance) -> Problem:
    """The instance in whole numbers. It does not depend on the order of the devices. O(n^2 C)."""
    order = sorted(range(len(instance.devices)), key=lambda index: instance.devices[index].id)
    byte = _byte_scale(instance)
    layer_bytes = [_whole(value, byte) for value in instance.layer_bytes]
    kv_bytes = [_whole(value, byte) for value in instance.layer_kv_bytes]
    room = {
        index: _whole(device.memory_bytes, byte) - _whole(device.reserved_bytes, byte)
        for index, device in enumerate(instance.devices)
    }
    scale = _cost_scale(instance, byte)
    work = exact(instance.work_per_byte)
    rate_of = {speed: _rounded(work / exact(speed) / byte * scale) for speed in _distinct_speeds(instance)}
    rate = {index: rate_of[device.performance] for index, device in enumerate(instance.devices)}
    # There are few distinct latencies, and rationals are slow: each value is converted once.
    cost_of = {value: _rounded(exact(value) * scale) for value in _distinct_hops(instance)}
    hop = [[cost_of[value] for value in row] for row in instance.latency_s]
    members = _classes(order, room, rate, hop)
    heads = [group[0] for group in members]
    return Problem(
        layers=instance.layers,
        work=_prefix_sums(layer_bytes),
        memory=_prefix_sums([weights + kv for weights, kv in zip(layer_bytes, kv_bytes, strict=True)]),
        first=_whole(instance.first_stage_bytes, byte),
        last=_whole(instance.last_stage_bytes, byte),
        members=tuple(tuple(group) for group in members),
        room=tuple(room[head] for head in heads),
        rate=tuple(rate[head] for head in heads),
        hop=tuple(tuple(hop[a[0]][b[0] if a is not b else a[min(1, len(a) - 1)]] for b in members) for a in members),
        byte=byte,
        unit=1 / scale,
        uniform=len(set(zip(layer_bytes, kv_bytes, strict=True))) == 1,
    )


def _byte_scale(instance: Instance) -> int:
    """The factor that makes all sizes whole: 1 unless the instance gives fractions of a byte."""
    values = [*instance.layer_bytes, *instance.layer_kv_bytes, instance.first_stage_bytes, instance.last_stage_bytes]
    for device in instance.devices:
        values += [device.memory_bytes, device.reserved_bytes]
    return math.lcm(*(exact(value).denominator for value in set(values) if not isinstance(value, int)))


def _cost_scale(instance: Instance, byte: int) -> Fraction:
    work = exact(instance.work_per_byte)
    rates = [work / exact(speed) / byte for speed in _distinct_speeds(instance)]
    hops = [exact(value) for value in _distinct_hops(instance)]
    smallest = min((value for value in (*rates, *hops) if value), default=Fraction(1))
    exponent = COST_BITS + smallest.denominator.bit_length() - smallest.numerator.bit_length()
    return Fraction(2) ** exponent


def _distinct_speeds(instance: Instance) -> set[Number]:
    return {device.performance for device in instance.devices}


def _distinct_hops(instance: Instance) -> set[Number]:
    return {value for row in instance.latency_s for value in row}


def _classes(order: list[int], room: dict[int, int], rate: dict[int, int], hop: list[list[int]]) -> list[list[int]]:
    classes: list[list[int]] = []
    for i in order:
        for group in classes:
            j = group[0]
            if room[i] == room[j] and rate[i] == rate[j] and _interchangeable(i, j, hop):
                group.append(i)
                break
        else:
            classes.append([i])
    return classes


def _interchangeable(i: int, j: int, hop: list[list[int]]) -> bool:
    return hop[i][j] == hop[j][i] and all(
        hop[i][k] == hop[j][k] and hop[k][i] == hop[k][j] for k in range(len(hop)) if k not in (i, j)
    )


def _prefix_sums(values: list[int]) -> tuple[int, ...]:
    sums = [0]
    for value in values:
        sums.append(sums[-1] + value)
    return tuple(sums)


def _whole(value: Number, scale: int) -> int:
    # Whole bytes are the rule, and rationals are slow.
    return value * scale if isinstance(value, int) else int(exact(value) * scale)


def _rounded(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))
