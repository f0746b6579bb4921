from __future__ import annotations

import asyncio

import pytest

from uellm.kube.slots import Priority, Slots, requests


class World:
    """Writes that wait until the test lets them end."""

    def __init__(self):
        self.slots = Slots(2, urgent_besides=0)
        self.open = []
        self.ends = {}
        self.urgency = {}

    async def _write(self, name, priority):
        with requests(priority) as self.urgency[name]:
            async with self.slots.slot():
                self.open.append(name)
                await self.ends[name].wait()
                self.open.remove(name)

    async def start(self, name, priority=Priority.ORDINARY):
        self.ends[name] = asyncio.Event()
        task = asyncio.create_task(self._write(name, priority))
        await asyncio.sleep(0)
        return task

    async def end(self, name):
        self.ends[name].set()
        for _ in range(3):
            await asyncio.sleep(0)


@pytest.fixture
def world():
    return World()


async def test_only_so_many_are_open_at_a_time_and_the_next_follows(world):
    for name in "abc":
        await world.start(name)
    assert world.open == ["a", "b"]
    await world.end("b")
    assert world.open == ["a", "c"]


async def test_an_urgent_one_goes_ahead_of_those_that_wait(world):
    for name in "abcd":
        await world.start(name)
    await world.start("urgent", Priority.URGENT)
    await world.end("a")
    assert world.open == ["b", "urgent"]
    await world.end("b")
    assert world.open == ["urgent", "c"]


async def test_one_that_gives_up_loses_no_slot(world):
    await world.start("a")
    await world.start("b")
    waits = await world.start("c")
    waits.cancel()
    await world.end("a")
    await world.start("d")
    await world.start("e")
    assert world.open == ["b", "d"]


async def test_one_that_gives_up_in_the_moment_of_its_turn_passes_it_on(world):
    await world.start("a")
    await world.start("b")
    waits = await world.start("c")
    await world.start("d")
    world.ends["a"].set()
    await asyncio.sleep(0)
    waits.cancel()
    for _ in range(4):
        await asyncio.sleep(0)
    assert world.open == ["b", "d"]


async def test_what_nobody_waits_for_comes_last(world):
    for name in "ab":
        await world.start(name)
    await world.start("later", Priority.LATER)
    await world.start("c")
    await world.end("a")
    assert world.open == ["b", "c"]
    await world.end("b")
    assert world.open == ["c", "later"]


async def test_an_urgent_one_has_slots_besides_those_of_all_others(world):
    world.slots = Slots(2, urgent_besides=1)
    for name in "abc":
        await world.start(name)
    await world.start("urgent", Priority.URGENT)
    await world.start("next", Priority.URGENT)
    assert world.open == ["a", "b", "urgent"]
    await world.end("urgent")
    assert world.open == ["a", "b", "next"]
    await world.end("a")
    assert world.open == ["b", "next", "c"]


async def test_one_for_which_a_person_begins_to_wait_goes_ahead_of_the_others(world):
    for name in "abcd":
        await world.start(name)
    world.urgency["d"].rise()
    await world.end("a")
    assert world.open == ["b", "d"]
    await world.end("b")
    assert world.open == ["d", "c"]


async def test_one_for_which_a_person_begins_to_wait_gets_a_slot_of_the_urgent_ones(world):
    world.slots = Slots(1, urgent_besides=1)
    for name in "abc":
        await world.start(name)
    world.urgency["c"].rise()
    await asyncio.sleep(0)
    assert world.open == ["a", "c"]
    world.urgency["b"].rise()
    await asyncio.sleep(0)
    assert world.open == ["a", "c"]
    await world.end("c")
    assert world.open == ["a", "b"]
    await world.end("a")
    assert world.open == ["b"]
