"""Profiles that nobody keeps are not planned on."""

from __future__ import annotations

import pytest

from uellm.kube.kinds import GPUNODEPROFILE
from uellm.reconcile.cache import Cache
from uellm.reconcile.planning.eligible_nodes import verdicts
from uellm.reconcile.stale_profiles import ProfileAges

REASON = (
    "its profile has not been renewed for more than 6 minutes: is the profiler running there, and does the driver "
    "answer it?"
)


def profile(name="node-1", observed_at="2026-01-01T00:00:00Z", heartbeat=120):
    return {"metadata": {"name": name}, "status": {"observedAt": observed_at, "heartbeatSeconds": heartbeat}}


@pytest.fixture
def ages():
    return ProfileAges()


def test_a_profile_is_stale_after_three_periods_without_a_new_one(ages):
    assert ages.stale([profile()], 1000) == {}
    assert ages.stale([profile()], 1360) == {}
    assert ages.stale([profile()], 1361) == {"node-1": REASON}


def test_any_new_time_renews_it_whatever_the_clocks_say(ages):
    ages.stale([profile()], 0)
    assert ages.stale([profile(observed_at="1999-01-01T00:00:00Z")], 361) == {}
    assert ages.stale([profile(observed_at="1999-01-01T00:00:00Z")], 721) == {}
    assert ages.stale([profile(observed_at="1999-01-01T00:00:00Z")], 722) == {"node-1": REASON}
    assert ages.stale([profile(observed_at="2099-01-01T00:00:00Z")], 723) == {}


def test_an_operator_that_was_just_started_trusts_every_profile_for_as_long(ages):
    assert ages.stale([profile(observed_at="2001-01-01T00:00:00Z")], 10**6) == {}


def test_the_profiler_says_how_often_it_writes(ages):
    ages.stale([profile(heartbeat=20)], 0)
    assert ages.stale([profile(heartbeat=20)], 60) == {}
    assert "for more than 1 minute: " in ages.stale([profile(heartbeat=20)], 61)["node-1"]


def test_a_profile_that_no_profiler_keeps_is_never_stale(ages):
    by_hand = {"metadata": {"name": "node-1"}, "status": {"observedAt": "2026-01-01T00:00:00Z"}}
    for now_s in (0, 10**6):
        assert ages.stale([by_hand, {"metadata": {"name": "node-2"}}], now_s) == {}


def test_a_profile_that_was_deleted_and_made_again_is_new(ages):
    ages.stale([profile()], 0)
    ages.stale([], 100)
    assert ages.stale([profile()], 400) == {}


def test_a_node_with_a_stale_profile_is_closed_and_keeps_its_pods(make):
    cache = Cache()
    cache.put(GPUNODEPROFILE, make.profile("node-1", (None,)))
    facts = [node.facts for node in cache.profiled_nodes()]
    assert verdicts(facts, cache.node, {}) == {}
    before = cache.hardware_version
    assert cache.set_stale_profiles({"node-1": REASON})
    assert cache.hardware_version == before + 1  # so that plans are checked again
    assert not cache.set_stale_profiles({"node-1": REASON})
    (verdict,) = verdicts(facts, cache.node, {}, cache.stale_profiles).values()
    assert verdict.reason == REASON
    assert verdict.instead is not None
    assert (verdict.instead.free, verdict.instead.closed) == ((), REASON)
