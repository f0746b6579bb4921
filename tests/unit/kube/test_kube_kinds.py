from __future__ import annotations

import pytest

from uellm.kube import kinds
from uellm.kube.kinds import DEPLOYMENT, GPUNODEPROFILE, KINDS, LLMSERVICE, NODE, POD, kind_of


@pytest.mark.parametrize(
    ("kind", "where", "path"),
    [
        (POD, {}, "/api/v1/pods"),
        (POD, {"namespace": "a"}, "/api/v1/namespaces/a/pods"),
        (POD, {"namespace": "a", "name": "b"}, "/api/v1/namespaces/a/pods/b"),
        (
            POD,
            {"namespace": "a", "name": "b", "subresource": "binding"},
            "/api/v1/namespaces/a/pods/b/binding",
        ),
        (DEPLOYMENT, {"namespace": "a", "name": "b"}, "/apis/apps/v1/namespaces/a/deployments/b"),
        (LLMSERVICE, {}, "/apis/uellm.io/v1alpha1/llmservices"),
        (NODE, {"name": "n"}, "/api/v1/nodes/n"),
        (GPUNODEPROFILE, {"name": "n", "subresource": "status"}, "/apis/uellm.io/v1alpha1/gpunodeprofiles/n/status"),
        (NODE, {"namespace": "ignored", "name": "n"}, "/api/v1/nodes/n"),
    ],
)
def test_paths_are_those_of_the_api_server(kind, where, path):
    assert kind.path(**where) == path


def test_a_name_cannot_leave_its_segment():
    assert NODE.path(name="../pods?x=1") == "/api/v1/nodes/..%2Fpods%3Fx%3D1"


def test_an_object_without_a_name_is_refused_instead_of_meaning_all_objects():
    with pytest.raises(ValueError, match="without a name"):
        POD.path(namespace="a", name="")


def test_a_namespaced_object_without_a_namespace_is_refused():
    with pytest.raises(ValueError, match="lives in a namespace"):
        POD.path(name="b")


def test_every_constant_is_found_by_its_objects_own_word():
    constants = [value for value in vars(kinds).values() if isinstance(value, kinds.Kind)]
    assert len(constants) == len(KINDS)
    for kind in constants:
        assert kind_of({"apiVersion": kind.api_version, "kind": kind.kind}) is kind


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="'Gizmo' of 'v1'"):
        kind_of({"apiVersion": "v1", "kind": "Gizmo"})
