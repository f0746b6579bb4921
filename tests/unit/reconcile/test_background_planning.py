"""Passes that do not wait for searches."""

from __future__ import annotations

import asyncio

import pytest

from uellm.kube.kinds import LLMSERVICE
from uellm.reconcile.names import Key
from uellm.reconcile.planning.planning import Planning


@pytest.fixture
def background(world):
    """The same world, whose passes do not wait for searches; which services were told of the end of one."""
    world.told = asyncio.Queue()
    world.planning = Planning(world.cache, world, workers=2, on_planned=world.told.put_nowait)
    return world


async def test_a_pass_does_not_wait_for_a_search_and_is_told_of_its_end(background):
    background.node("a", None, None)
    background.service("one")
    assert await background.planned("one") is None
    assert await background.planned("one") is None
    assert await background.told.get() == Key("ns", "one")
    assert (await background.plan("one")).plan is not None
    assert len(background.requests) == 1


async def test_more_replicas_are_had_at_once_while_their_plan_is_sought(background):
    background.node("a", *[None] * 8)
    background.service("one")
    assert await background.planned("one") is None
    await background.told.get()
    chosen = (await background.planned("one")).choice.plan
    document = background.service("one", plan=chosen, replicas=2)
    document["metadata"]["generation"] += 1
    background.put(LLMSERVICE, document)
    background.deployed("one")
    background.gate.clear()
    planned = await background.planned("one")
    assert planned.choice.plan == chosen
    assert planned.rendered is not None
    background.gate.set()
    await background.told.get()


async def test_a_service_that_is_deleted_while_it_is_planned_is_promised_nothing(background):
    background.node("a", None, None)
    background.service("one")
    background.gate.clear()
    assert await background.planned("one") is None
    await background.asked(1)
    background.planning.forget(Key("ns", "one"))
    await background.told.get()
    background.gate.set()
    background.service("two")
    assert await background.planned("two") is None
    await background.told.get()
    assert (await background.plan("two")).plan is not None


async def test_a_search_that_failed_is_told_by_the_next_pass(background):
    class PlannerGone(Exception):
        pass

    async def gone(_):
        raise PlannerGone

    background.answer = gone
    background.node("a", None, None)
    background.service("one")
    assert await background.planned("one") is None
    await background.told.get()
    with pytest.raises(PlannerGone):
        await background.planned("one")


async def test_a_plan_that_its_search_did_not_render_is_rendered_after_the_search_has_given_up_its_turn(world):
    world.told = asyncio.Queue()
    world.planning = Planning(world.cache, world, workers=1, on_planned=world.told.put_nowait)
    world.renders_itself = False
    world.node("a", None, None)
    world.service("one")
    assert await world.planned("one") is None
    async with asyncio.timeout(5):
        assert await world.told.get() == Key("ns", "one")
    assert (await world.planned("one")).rendered is not None
    assert len(world.rendered) == 1


async def test_a_service_that_is_made_again_while_its_former_search_ends_has_one_search(world):
    world.told = asyncio.Queue()
    world.planning = Planning(world.cache, world, workers=2, on_planned=world.told.put_nowait)
    world.node("a", None, None)
    document = world.service("one")
    world.gate.clear()
    assert await world.planned("one") is None
    await world.asked(1)
    world.cache.remove(LLMSERVICE, document)
    world.planning.forget(Key("ns", "one"))
    world.service("one")
    assert await world.planned("one") is None
    await world.asked(2)
    assert await world.planned("one") is None
    world.gate.set()
    async with asyncio.timeout(5):
        while (planned := await world.planned("one")) is None:
            await world.told.get()
    assert planned.choice.plan is not None
    assert len(world.requests) == 2


async def test_what_was_rendered_is_kept_until_a_revision_has_it_and_made_again_where_that_is_lost(
    background, make, monkeypatch
):
    background.node("a", None, None)
    background.service("one")
    assert await background.planned("one") is None
    await background.told.get()
    first = await background.planned("one")
    assert first.rendered is not None
    with monkeypatch.context() as frozen:
        frozen.setattr("uellm.reconcile.planning.planning.kept_revision", lambda *_: make.revision(""))
        assert await background.planned("one") == (first.choice, None)
        assert await background.planned("one") == (first.choice, None)
    assert background.rendered == []
    again = await background.planned("one")
    assert again == first
    assert len(background.rendered) == len(background.requests) == 1
