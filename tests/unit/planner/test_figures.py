"""A placement that was worked out for one node, on others of the same build."""

from __future__ import annotations

import dataclasses

from uellm.hardware import Device, Link
from uellm.planner.nodes.pools import Pool
from uellm.planner.search.figures import Essence, Known, Worked, build_of


def pool(name, *, latency_s=1e-6, memory_bytes=80):
    devices = tuple(Device(f"{name}-{index}", index, "H100", memory_bytes) for index in range(2))
    links = (Link(f"{name}-0", f"{name}-1", "NVLink", 1e11, latency_s),)
    return Pool(name, "nvidia.com/gpu", devices, links)


def test_nodes_that_differ_in_names_alone_are_of_one_build():
    assert build_of(pool("a")) == build_of(pool("b"))
    assert hash(build_of(pool("a"))) == hash(build_of(pool("b")))


def test_another_link_another_rate_or_another_memory_is_another_build():
    one = pool("a")
    faster = tuple(dataclasses.replace(device, fp8_flops_per_s=1e15) for device in one.devices)
    others = (pool("a", latency_s=2e-6), pool("a", memory_bytes=40), dataclasses.replace(one, devices=faster))
    assert all(build_of(one) != build_of(other) for other in others)


def test_promised_gpus_do_not_matter_to_a_placement():
    assert build_of(pool("a")) == build_of(dataclasses.replace(pool("a"), promised=1))


def test_a_placement_is_moved_to_the_devices_of_the_other_node():
    worked = Worked(((1,), (0,)), (3, 5), 1.0, 0.5, None)
    assert [device.uuid for device in worked.on(pool("b")).devices] == ["b-1", "b-0"]
    assert Worked.of(pool("b"), worked.on(pool("b")), None) == worked


def test_the_least_recently_used_results_are_dropped(monkeypatch):
    monkeypatch.setattr("uellm.planner.search.figures.KEPT_FIGURES", 2)
    known, worked = Known(), Worked(((0,),), (1,), 0.0, 0.0, None)
    for name in ("a", "b"):
        known.put(Essence(name), worked)
    assert known.get(Essence("a")) is worked
    known.put(Essence("c"), worked)
    assert known.get(Essence("b")) is None
    assert known.get(Essence("a")) is worked
