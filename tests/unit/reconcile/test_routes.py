"""The steps to a service's InferencePool and HTTPRoute, where the API server has their kinds only now and then."""

from __future__ import annotations

import pytest

from uellm.api import parse_service
from uellm.kube import Conflict, KubeError, NotFound
from uellm.kube.kinds import DEPLOYMENT, HTTPROUTE, INFERENCEPOOL
from uellm.reconcile.apply import Applier
from uellm.reconcile.cache import Cache
from uellm.reconcile.observe import Observed
from uellm.reconcile.optional_kinds import ROUTING_KINDS, Availability
from uellm.reconcile.routes import RECHECK_S, VANISHED_S, next_route_step, take_route_step, wanted_routes

BOTH = dict.fromkeys(ROUTING_KINDS, Availability.SERVED)


class Server:
    """An API server without objects, on which every write ends in `error`."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def get(self, *_: object) -> None:
        return None

    async def apply(self, *_: object, **__: object) -> None:
        raise self.error


@pytest.fixture
def observed(make):
    def build(*, available=BOTH, deployment=True, routing="InferencePool", children=None, **pool):
        document = make.service(routing=routing, inferencePool=pool)
        found = {DEPLOYMENT: make.deployment()} if deployment else {}
        return Observed(document, parse_service(document), children={**found, **(children or {})}, available=available)

    return build


GONE = NotFound(404, "NotFound", "no such kind")


def applier(error: Exception = GONE) -> Applier:
    return Applier(Server(error), Cache())


async def test_without_the_kind_nothing_is_written_and_the_condition_says_what_to_install(observed):
    step = await next_route_step(applier(), observed(available={}))
    assert (step.write, step.remove, step.recheck_s) == ((), (), RECHECK_S)
    assert step.condition[:3] == ("Routed", "False", "NotInstalled")


async def test_a_pool_without_the_kind_of_routes_is_made_all_the_same(observed):
    available = {INFERENCEPOOL: Availability.SERVED}
    step = await next_route_step(applier(), observed(available=available, gateways=[{"name": "public"}]))
    assert [each["kind"] for each in step.write] == ["InferencePool"]
    assert step.condition.reason == "NotInstalled"
    assert step.condition.message.startswith("the cluster has no HTTPRoute (gateway.networking.k8s.io/v1)")


async def test_nothing_is_made_before_the_deployment(observed):
    step = await next_route_step(applier(), observed(deployment=False))
    assert (step.condition, step.write, step.remove) == (None, (), ())


async def test_what_is_not_wanted_any_more_goes_the_route_first(observed):
    children = {kind: {"kind": kind.kind} for kind in ROUTING_KINDS}
    step = await next_route_step(applier(), observed(routing="Service", children=children))
    assert [kind for kind, _ in step.remove] == [HTTPROUTE, INFERENCEPOOL]
    assert step.condition is None


@pytest.mark.parametrize(
    "error", [NotFound(404, "NotFound", "gone"), KubeError(405, "MethodNotAllowed", "CRD is terminating")]
)
async def test_a_kind_that_goes_while_its_object_is_written_is_looked_at_again(observed, error):
    kube, state = applier(error), observed()
    step = await next_route_step(kube, state)
    assert step.write
    assert await take_route_step(kube, state, step) == VANISHED_S


async def test_any_other_error_of_the_server_is_not_hidden(observed):
    kube, state = applier(Conflict(409, "Conflict", "changed")), observed()
    with pytest.raises(Conflict):
        await take_route_step(kube, state, await next_route_step(kube, state))


def test_the_picker_and_the_gateways_are_those_of_the_spec(observed):
    picker = {"name": "shared", "port": 9, "failureMode": "FailClose"}
    pool, route = wanted_routes(observed(endpointPicker=picker, gateways=[{"name": "a", "sectionName": "https"}]))
    reference = {"group": "", "kind": "Service", "name": "shared", "port": {"number": 9}, "failureMode": "FailClose"}
    assert pool["spec"]["endpointPickerRef"] == reference
    assert "namespace" not in route["spec"]["parentRefs"][0]
    assert route["spec"]["parentRefs"][0]["sectionName"] == "https"
    assert "hostnames" not in route["spec"]
