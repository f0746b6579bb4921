from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from helpers.models import SMALLEST_LLAMA
from uellm.kube.kinds import DEPLOYMENT, GPUNODEPROFILE, LLMSERVICE
from uellm.reconcile.cache import Cache
from uellm.reconcile.names import Key
from uellm.reconcile.observe import observe
from uellm.reconcile.planning.answer import PlanningAnswer
from uellm.reconcile.planning.choose import Choice
from uellm.reconcile.planning.deferral import DEFER_PODS_S, LONGEST_S, PACE_S, Deferral
from uellm.reconcile.planning.planning import Planning

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
async def crowded(make):
    """A planner that has planned `first`, is planning `second`, and has `third` in its queue."""
    cache, gate = Cache(), asyncio.Event()
    gate.set()

    class Worker:
        async def answer(self, question):
            await gate.wait()
            return PlanningAnswer(Choice(make.plan(nodes=("a",))), "rendered")

    planning = Planning(cache, Worker())
    cache.put(GPUNODEPROFILE, make.profile("a", (None,) * 8))
    for name in ("first", "second", "third"):
        cache.put(LLMSERVICE, make.service(name, model={"uri": "file:///m", "config": SMALLEST_LLAMA}))

    def observed(name):
        return observe(cache, Key("ns", name))

    await planning.plan(observed("first"), NOW)
    gate.clear()
    waiting = [asyncio.create_task(planning.plan(observed(name), NOW)) for name in ("second", "third")]
    for _ in waiting:
        await asyncio.sleep(0)
    yield planning, observed, gate, waiting
    gate.set()
    await asyncio.gather(*waiting)


async def test_pods_wait_while_others_wait_for_a_plan(crowded):
    planning, observed, gate, waiting = crowded
    assert planning.pods_deferred_s(observed("first"), NOW) == DEFER_PODS_S
    gate.set()
    await asyncio.gather(*waiting)
    assert planning.pods_deferred_s(observed("first"), NOW) is None


async def test_pods_do_not_wait_for_long(crowded):
    planning, observed, _, _ = crowded
    assert planning.pods_deferred_s(observed("first"), NOW + timedelta(seconds=DEFER_PODS_S)) is None


def deferral(make, names):
    """Pods of these services, all planned now, while another one waits for a plan that takes for ever."""
    found, observed = Deferral(None), {}
    found.waiting(1)
    for name in names:
        cache = Cache()
        cache.put(LLMSERVICE, make.service(name))
        observed[name] = observe(cache, Key("ns", name))
        found.planned(Key("ns", name))
        assert found.remaining_s(observed[name], NOW, NOW) is not None
        found.written(Key("ns", name))
    return lambda name, after_s: found.remaining_s(observed[name], NOW, NOW + timedelta(seconds=after_s))


def test_after_a_minute_the_pods_of_one_service_follow_those_of_the_other_at_a_pace(make):
    remaining_s = deferral(make, ("a", "b", "c"))
    assert [remaining_s(name, DEFER_PODS_S) for name in ("a", "b", "c")] == [None, PACE_S, 2 * PACE_S]
    assert [remaining_s(name, DEFER_PODS_S + PACE_S) for name in ("a", "b", "c")] == [None, None, PACE_S]


def test_the_pods_of_the_last_of_many_services_wait_no_longer_than_five_minutes(make):
    names = [f"s{number}" for number in range(400)]
    remaining_s = deferral(make, names)
    assert remaining_s(names[-1], LONGEST_S - 1) == 1
    assert remaining_s(names[-1], LONGEST_S) is None


def test_the_places_in_line_are_given_up_when_nobody_waits_any_more(make):
    found, cache = Deferral(None), Cache()
    for name in ("a", "b"):
        cache.put(LLMSERVICE, make.service(name))
    a, b = (observe(cache, Key("ns", name)) for name in ("a", "b"))
    found.waiting(1)
    assert found.remaining_s(a, NOW, NOW) == DEFER_PODS_S
    found.waiting(0)
    found.waiting(1)
    assert found.remaining_s(b, NOW, NOW) == DEFER_PODS_S


async def test_a_service_with_a_deployment_does_not_wait(crowded, make):
    planning, observed, _, _ = crowded
    seen = observed("first")
    seen.children[DEPLOYMENT] = make.deployment()
    assert planning.pods_deferred_s(seen, NOW) is None


async def test_pods_that_were_held_back_are_due_when_every_plan_is_written_down(make):
    cache, gate, due = Cache(), asyncio.Event(), []
    gate.set()

    class Worker:
        async def answer(self, question):
            await gate.wait()
            return PlanningAnswer(Choice(make.plan(nodes=("a",))), "rendered")

    planning = Planning(cache, Worker(), on_planned=due.append)
    cache.put(GPUNODEPROFILE, make.profile("a", (None,) * 8))
    keys = [Key("ns", name) for name in ("first", "second", "third")]
    for key in keys:
        cache.put(LLMSERVICE, make.service(key.name, model={"uri": "file:///m", "config": SMALLEST_LLAMA}))
    await planning.plan(observe(cache, keys[0]), NOW)
    await until(lambda: due == keys[:1])
    gate.clear()
    for key in keys[1:]:
        assert await planning.plan(observe(cache, key), NOW) is None
    await until(lambda: planning.in_line == 1)
    assert planning.pods_deferred_s(observe(cache, keys[0]), NOW) is not None
    gate.set()
    await until(lambda: len(due) == 3)
    planning.written(keys[0])
    assert planning.pods_deferred_s(observe(cache, keys[0]), NOW) is not None
    planning.written(keys[1])
    assert due.count(keys[0]) == 1
    planning.written(keys[2])
    assert due.count(keys[0]) == 2
    assert planning.pods_deferred_s(observe(cache, keys[0]), NOW) is None


async def until(check):
    while not check():  # noqa: ASYNC110 - each turn of the event loop brings it nearer
        await asyncio.sleep(0)
