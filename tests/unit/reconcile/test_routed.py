"""The condition Routed: what Gateways say of the InferencePool and the HTTPRoute."""

from __future__ import annotations

import pytest

from uellm.api import parse_service
from uellm.kube.kinds import HTTPROUTE, INFERENCEPOOL
from uellm.reconcile.optional_kinds import Availability
from uellm.reconcile.status.routed import routed, unavailable

GATEWAYS = {"gateways": [{"name": "public", "namespace": "infra"}, {"name": "own"}]}


@pytest.fixture
def service(make):
    return parse_service(make.service(routing="InferencePool", inferencePool=GATEWAYS))


def told(status, *, type_="Accepted", kind="Gateway", generation=3, seen=3):
    condition = {"type": type_, "status": status, "reason": "Reason", "message": "why", "observedGeneration": seen}
    parents = [{"parentRef": {"kind": kind, "name": "public"}, "conditions": [condition]}]
    return {"metadata": {"generation": generation}, "status": {"parents": parents}}


def test_objects_of_which_no_gateway_has_said_anything_are_as_they_should_be(service):
    condition = routed(service, {INFERENCEPOOL: {"metadata": {}}, HTTPROUTE: {"metadata": {}, "status": {}}})
    assert condition[1:3] == ("True", "PoolMade")
    assert condition.message == (
        "InferencePool llama names the endpoint picker llama-epp:9002; HTTPRoute llama attaches it to infra/public, "
        "ns/own"
    )


@pytest.mark.parametrize("type_", ["Accepted", "ResolvedRefs"])
@pytest.mark.parametrize("kind", [INFERENCEPOOL, HTTPROUTE], ids=lambda kind: kind.kind)
def test_a_gateway_that_refuses_an_object_is_named_with_its_reason(service, kind, type_):
    condition = routed(service, {kind: told("False", type_=type_)})
    assert condition[1:3] == ("False", "NotAccepted")
    assert condition.message == (
        f"Gateway public does not take {kind.kind} llama: Reason (why); the Service serves all the same"
    )


@pytest.mark.parametrize(
    "child",
    [told("True"), told("Unknown"), told("False", seen=2), told("False", kind="Status"), told("False", type_="Other")],
    ids=["accepted", "not decided", "about an older generation", "of no gateway", "another condition"],
)
def test_what_is_no_refusal_of_a_gateway_changes_nothing(service, child):
    assert routed(service, {INFERENCEPOOL: child}).holds


def test_a_kind_that_may_not_be_read_is_a_matter_of_rights():
    obstacle = unavailable(HTTPROUTE, Availability.FORBIDDEN)
    assert obstacle == (
        "Forbidden",
        "the operator may not read httproutes of gateway.networking.k8s.io/v1: give its ClusterRole the rights that "
        "UELLM's chart has",
    )
