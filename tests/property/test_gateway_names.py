"""Which service has a name: what is listed is what requests get, and who can never answer is in nobody's way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from uellm.gateway.catalog import Catalog, Match, Service, ServiceKey
from uellm.proxying.outcome import Refusal, RequestOutcome

NAMES = ("x", "y", "a/x")
NAMESPACES = ("a", "b")
KEYS = [ServiceKey(namespace, name) for namespace in NAMESPACES for name in ("one", "two")]
ASKED = (*NAMES, *(f"{namespace}/{name}" for namespace in NAMESPACES for name in NAMES))

names = st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True).map(tuple)
services = st.builds(
    Service,
    st.sampled_from(KEYS),
    names,
    created_s=st.integers(0, 2),
    suspended=st.booleans(),
    wakes=st.booleans(),
    replicas=st.integers(0, 1),
)
fleets = st.lists(
    st.tuples(services, st.frozensets(st.one_of(st.just(()), names), max_size=2)),
    max_size=4,
    unique_by=lambda each: each[0].key,
)

settled = st.lists(
    st.tuples(services, st.booleans()).map(lambda each: (each[0], frozenset({each[0].names} if each[1] else ()))),
    max_size=4,
    unique_by=lambda each: each[0].key,
)
"""Those whose replicas, if there are any, serve the names of the spec."""


def catalog_of(fleet: list[tuple[Service, frozenset[tuple[str, ...]]]]) -> Catalog:
    catalog = Catalog()
    for service, told in fleet:
        catalog.put(service)
        catalog.tell(service.key, told)
    return catalog


def found(catalog: Catalog, asked: str) -> Match | RequestOutcome:
    try:
        return catalog.find(asked)
    except Refusal as refusal:
        return refusal.outcome


@given(fleets)
def test_what_is_listed_is_what_requests_get(fleet) -> None:
    catalog = catalog_of(fleet)
    listed = {each["id"]: each["owned_by"] for each in catalog.listed()}
    assert len(listed) == len(catalog.listed())
    for asked, namespace in listed.items():
        match = catalog.find(asked)
        assert match.answered
        assert match.service.key.namespace == namespace
    for match in [match for asked in ASKED if isinstance(match := found(catalog, asked), Match)]:
        if match.answered:
            namespace = match.service.key.namespace
            assert namespace in (listed.get(match.name), listed.get(f"{namespace}/{match.name}"))


@given(settled)
def test_services_that_cannot_answer_change_nothing_for_those_that_can(fleet) -> None:
    catalog = catalog_of(fleet)
    able = catalog_of([(service, told) for service, told in fleet if told or service.starts])
    for asked in ASKED:
        match = found(able, asked)
        with_a_slash = isinstance(match, Match) and match.name == asked == "a/x"  # namespace a takes precedence
        if isinstance(match, Match) and match.answered and not with_a_slash:
            assert found(catalog, asked) == match


@given(fleets)
def test_a_name_with_its_namespace_is_never_ambiguous(fleet) -> None:
    catalog = catalog_of(fleet)
    for service, _ in fleet:
        for name in service.names:
            assert found(catalog, f"{service.key.namespace}/{name}") is not RequestOutcome.MODEL_AMBIGUOUS


@given(fleets)
def test_a_name_is_ambiguous_where_several_namespaces_serve_it_or_can_start_a_replica(fleet) -> None:
    catalog = catalog_of(fleet)
    for name in ("x", "y"):
        declared = [(service, told) for service, told in fleet if name in service.names]
        able = {s.key.namespace for s, told in declared if s.starts or any(name in (t or s.names) for t in told)}
        if len(able) > 1:
            assert found(catalog, name) is RequestOutcome.MODEL_AMBIGUOUS
        if len(able) == 1 and isinstance(match := found(catalog, name), Match):
            assert match.service.key.namespace in able
