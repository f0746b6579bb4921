"""The placement problem in whole numbers, with its devices in classes of interchangeable ones.

Costs are integers (a fixed fine unit), so that sums do not depend on their order and ties are ties. Two devices are
interchangeable where exchanging them changes nothing: same room, same speed, same hops to and from everyone else.
That is an equivalence, so the solver may count devices of a class instead of naming them: eight identical GPUs are
nine states instead of 256.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from uellm.planner.placement.instance import Instance, Number, exact

# Bits below the smallest rate or hop: rounding to the unit stays far under a float's own precision.
COST_BITS = 64


@dataclass(frozen=True, slots=True)
class Problem:
    """An instance in whole numbers. Index c is a class of devices, a and b are layer positions 0..layers."""

    layers: int
    work: tuple[int, ...]  # prefix sums of layer bytes, layers + 1 entries
    memory: tuple[int, ...]  # prefix sums of layer bytes and KV bytes
    first: int
    last: int
    members: tuple[tuple[int, ...], ...]  # by class: indices into the instance's devices, in the order of their ids
    room: tuple[int, ...]  # by class: bytes for layers; may be negative
    rate: tuple[int, ...]  # by class: cost of a byte of work
    hop: tuple[tuple[int, ...], ...]  # by class and class: cost of a hop
    byte: int  # what bytes were multiplied by to become whole
    unit: Fraction  # seconds (or whatever the latency is in) of one unit of cost
    uniform: bool  # whether all layers are alike, in work and in memory

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
    """The instance in whole numbers; the same whatever order its devices come in."""
    order = sorted(range(len(instance.devices)), key=lambda index: instance.devices[index].id)
    byte = _byte_scale(instance)
    layer_bytes = [_whole(value, byte) for value in instance.layer_bytes]
    kv_bytes = [_whole(value, byte) for value in instance.layer_kv_bytes]
    room = {
        index: _whole(device.memory_bytes, byte) - _whole(device.reserved_bytes, byte)
        for index, device in enumerate(instance.devices)
    }
    scale = _cost_scale(instance, byte)
    rate = {
        index: _rounded(exact(instance.work_per_byte) / exact(device.performance) / byte * scale)
        for index, device in enumerate(instance.devices)
    }
    # Links come in few kinds, and rationals are slow: each value is turned once.
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
    """What bytes are multiplied by to become whole: 1 unless somebody writes fractions of a byte."""
    values = [*instance.layer_bytes, *instance.layer_kv_bytes, instance.first_stage_bytes, instance.last_stage_bytes]
    for device in instance.devices:
        values += [device.memory_bytes, device.reserved_bytes]
    return math.lcm(*(exact(value).denominator for value in set(values)))


def _cost_scale(instance: Instance, byte: int) -> Fraction:
    work = exact(instance.work_per_byte)
    rates = [work / exact(speed) / byte for speed in {device.performance for device in instance.devices}]
    hops = [exact(value) for value in _distinct_hops(instance)]
    smallest = min((value for value in (*rates, *hops) if value), default=Fraction(1))
    exponent = COST_BITS + smallest.denominator.bit_length() - smallest.numerator.bit_length()
    return Fraction(2) ** exponent


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
    return int(exact(value) * scale)


def _rounded(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))
