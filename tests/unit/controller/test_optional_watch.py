"""A kind of another project that comes, goes, or may not be read, and the services that hear of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from uellm.controller.optional_watch import OptionalWatch
from uellm.controller.resync import fill_optional
from uellm.controller.watcher import Watcher
from uellm.kube import ADDED, SYNCED, Event, Forbidden, NotFound
from uellm.kube.kinds import INFERENCEPOOL, LLMSERVICE
from uellm.reconcile.cache import Cache
from uellm.reconcile.names import Key
from uellm.reconcile.optional_kinds import Availability

POOL = {"metadata": {"namespace": "ns", "name": "a", "uid": "p", "resourceVersion": "5"}, "spec": {}}


class Scripted:
    """Stands in for `Kube.watch`: one script after the other, then silence."""

    def __init__(self, *scripts: list[Event | Exception | Callable[[], None]]) -> None:
        self.scripts = list(scripts)

    async def watch(self, *_: object, **options: object):
        assert options["optional"] is True
        if not self.scripts:
            await asyncio.Event().wait()
        for each in self.scripts.pop(0):
            if isinstance(each, Exception):
                raise each
            if isinstance(each, Event):
                yield each
            else:
                each()


@pytest.fixture
def cache():
    cache = Cache()
    metadata = {"namespace": "ns", "name": "a", "uid": "u", "resourceVersion": "1"}
    cache.put(LLMSERVICE, {"metadata": metadata, "spec": {}})
    return cache


async def run(cache: Cache, *scripts: list[Event | Exception | Callable[[], None]]) -> list[Key]:
    """The services that were marked until the scripts were over."""
    marked: list[Key] = []
    watcher = Watcher(cache, lambda key, after_s: marked.append(key), list)
    kube = Scripted(*scripts)
    task = asyncio.create_task(OptionalWatch(kube, cache, watcher, INFERENCEPOOL, look_s=0.0).keep())
    async with asyncio.timeout(10):
        while kube.scripts:  # noqa: ASYNC110 - the end of a script has no event
            await asyncio.sleep(0)
    for _ in range(10):
        await asyncio.sleep(0)
    task.cancel()
    return marked


async def test_a_kind_that_stays_away_marks_nobody(cache):
    assert await run(cache, *([NotFound(404, "NotFound", "no")] for _ in range(3))) == []
    assert cache.available[INFERENCEPOOL] is Availability.NOT_INSTALLED


async def test_a_kind_that_comes_is_known_with_its_objects_and_every_service_is_looked_at(cache):
    marked = await run(cache, [NotFound(404, "NotFound", "no")], [Event(ADDED, POOL), Event(SYNCED, {})])
    assert cache.available[INFERENCEPOOL] is Availability.SERVED
    assert cache.get(INFERENCEPOOL, "a", "ns") is not None
    # Once for its object, once for the kind.
    assert marked == [Key("ns", "a")] * 2


@pytest.mark.parametrize(
    ("error", "availability"),
    [
        (NotFound(404, "NotFound", "no"), Availability.NOT_INSTALLED),
        (Forbidden(403, "Forbidden", "no"), Availability.FORBIDDEN),
    ],
)
async def test_a_kind_that_goes_takes_its_objects_along(cache, error, availability):
    marked = await run(cache, [Event(ADDED, POOL), Event(SYNCED, {}), error])
    assert cache.available[INFERENCEPOOL] is availability
    assert cache.get(INFERENCEPOOL, "a", "ns") is None
    assert marked == [Key("ns", "a")] * 3


async def test_what_vanished_before_the_first_list_of_the_watch_is_not_kept(cache):
    cache.put(INFERENCEPOOL, {**POOL, "metadata": {**POOL["metadata"], "name": "ghost"}})
    await run(cache, [Event(ADDED, POOL), Event(SYNCED, {})])
    assert cache.get(INFERENCEPOOL, "ghost", "ns") is None
    assert cache.get(INFERENCEPOOL, "a", "ns") is not None


async def test_one_wrong_answer_to_a_resync_does_not_take_a_kind_away_that_is_watched(cache):
    class Refusing:
        async def list(self, *_: object, **__: object) -> None:
            raise Forbidden(403, "Forbidden", "not yet")

    await run(cache, [Event(ADDED, POOL), Event(SYNCED, {})])
    await fill_optional(Refusing(), cache, INFERENCEPOOL)
    assert cache.available[INFERENCEPOOL] is Availability.SERVED
    assert cache.get(INFERENCEPOOL, "a", "ns") is not None
