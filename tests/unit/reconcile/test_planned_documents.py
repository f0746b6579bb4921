"""When the documents of a plan are rendered."""

from __future__ import annotations


async def test_a_pass_for_another_reason_renders_nothing(world):
    world.node("a", None, None, "x")
    world.service("one")
    first = await world.planned("one")
    world.node("a", None, None, None)  # freed, but no document shows it
    assert (await world.planned("one")).rendered == first.rendered is not None
    assert world.rendered == []


async def test_a_plan_that_the_worker_chose_without_rendering_it_is_rendered_once(world):
    world.node("a", None, None)
    world.service("one")
    world.renders_itself = False
    first = await world.planned("one")
    assert (await world.planned("one")).rendered == first.rendered is not None
    assert world.rendered == [first.choice.plan]


async def test_a_suspended_services_plan_is_rendered_again_when_the_facts_of_its_nodes_change(world, make):
    world.node("a", None, None)
    world.service("one", plan=make.plan(nodes=("a",)), suspend=True)
    world.deployed("one", replicas=0)
    first = await world.planned("one")
    assert await world.planned("one") == first
    assert len(world.rendered) == 1
    world.node("a", None, None, product="Other")
    assert (await world.planned("one")).rendered != first.rendered
    assert len(world.rendered) == 2


async def test_nothing_is_rendered_for_a_service_without_a_plan(world):
    world.service("one")
    assert await world.planned("one") == (await world.plan("one"), None)
    assert world.rendered == []
